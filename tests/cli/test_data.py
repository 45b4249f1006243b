"""om2p-data: what it does, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from om2p_cli import data

from .conftest import Run, assert_one_line, contents

QUICK = {
    "num_envs = 64": "num_envs = 32",
    "hidden = [64, 64]": "hidden = [32, 32]",
    "_episodes = 1_000": "_episodes = 200",
    "warmup_steps = 3_200": "warmup_steps = 1_600",
    "batch_size = 256": "batch_size = 128",
    "medium = 273.4": "medium = 105.0",
    "expert = 531.0": "expert = 135.0",
}


def recipe_text(changes: dict[str, str]) -> str:
    """Cooperative Navigation's own recipe with changes."""
    text = (Path(data.__file__).parents[1] / "recipes" / "data" / "cooperative-navigation.toml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def test_behaviour_training_and_the_tiers_that_need_it(run: Run, here: Path) -> None:
    (here / "quick.toml").write_text(recipe_text(QUICK))
    quick = ["--env", "cn", "--recipe", "quick.toml", "--seed", 1, "--quiet"]
    trained = run("om2p-data", "train", *quick)
    assert (trained.code, trained.err) == (0, "")
    line = r"^(medium|expert): return (\d+\.\d) ± \d+\.\d after [\d,]+ updates, [\d,]+ steps, \d+ s$"
    levels = {level: float(mean) for level, mean in re.findall(line, trained.out, re.MULTILINE)}
    assert list(levels) == ["medium", "expert"]
    assert 0.95 * 105 <= levels["medium"] <= 1.05 * 105
    assert 135 <= levels["expert"] <= 1.15 * 135
    folder = Path(trained.out.splitlines()[-1].removeprefix("in "))
    before = contents(folder)
    assert {"medium.safetensors", "expert.safetensors", "log.csv"} <= set(before)

    copied = run("om2p-data", "train", *quick, "--until", "medium", "--out", "teams/mine")
    assert (copied.code, copied.err, copied.out.splitlines()[-1]) == (0, "", "in teams/mine")
    assert contents(here / "teams" / "mine") == {"medium.safetensors": before["medium.safetensors"]}

    mixed = run("om2p-data", "generate", *quick, "--tier", "medium-expert", "--transitions", 100, "--mix", "0.5")
    assert (mixed.code, mixed.err) == (0, "")
    assert re.search(r"^  medium: 2 episodes, .*\n  expert: 2 episodes, ", mixed.out, re.MULTILINE)
    for level, mean in levels.items():
        origin = rf"^  {level} team: {folder} \(matd3, seed 1, return {mean} ± \d+\.\d over 200 episodes\)$"
        assert re.search(origin, mixed.out, re.MULTILINE), mixed.out
    assert contents(folder) == before


def test_levels_come_with_the_package(run: Run, here: Path) -> None:
    made = run("om2p-data", "generate", "--env", "pp", "--tier", "expert", "--transitions", 50, "--quiet")
    assert (made.code, made.err) == (0, "")
    assert re.search(r"^  expert team: bundled with om2p \(matd3, seed \d+, return \d+\.\d ± ", made.out, re.MULTILINE)
    assert not (here / "home" / "behavior").exists()


def test_a_prey_is_trained_and_written(run: Run, here: Path) -> None:
    """Against one that has hardly begun, random predators score -6 and then -10."""
    settings = [
        "num_envs=32", "min_steps=0", "max_steps=20000", "segment_steps=50", "evaluation_episodes=1000",
        "hidden=[16, 16]", "td3.warmup_steps=1600", "td3.batch_size=64",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", f"prey.{setting}")]
    made = run(
        "om2p-data", "train-prey", "--env", "world", "--seed", 6, "--out", "new/prey.safetensors", "--quiet", *words
    )
    assert (made.code, made.err) == (0, "")
    first, last = made.out.splitlines()
    mean = re.fullmatch(
        r"world-\w{12}: random predators score (\S+) ± \S+ \(published: -6\.8\) after [\d,]+ steps", first
    )
    assert mean is not None, first
    assert float(mean[1]) == pytest.approx(-6.8, abs=0.16)
    assert last == "in new/prey.safetensors"
    assert (here / "new" / "prey.safetensors").stat().st_size < 10_000


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "cnn"], r"unknown environment 'cnn': did you mean 'cn'"),
        (["--env", "predator"], r"unknown environment 'predator': did you mean 'predator-prey'"),
        (["--tier", "medum"], r"unknown tier 'medum': did you mean 'medium'"),
        (["--set", "behavior.td3.gama=0.9"], r"unknown key 'behavior\.td3\.gama': did you mean 'behavior\.td3\.gamma'"),
        (["--set", "behavior.gamma=0.9"], r"unknown key 'behavior\.gamma': did you mean .*'behavior\.td3\.gamma'"),
        (["--set", "collection.num_env=3"], r"unknown key 'collection\.num_env': did you mean 'collection\.num_envs'"),
        (
            ["--set", "behavior.td3.gamma=high"],
            r"behavior\.td3\.gamma = 'high' is wrong: Input should be a valid number",
        ),
        (["--set", "behavior.td3.gamma=2"], r"behavior\.td3\.gamma = 2 is wrong: Input should be less than 1"),
        (["--set", "behavior.num_envs=2.5"], r"behavior\.num_envs = 2\.5 is wrong: Input should be a valid integer"),
        (["--set", "behavior.num_envs='64'"], r"behavior\.num_envs = '64' is wrong: Input should be a valid integer"),
        (["--set", "behavior.hidden=[64, -1]"], r"behavior\.hidden\.1 = -1 is wrong: Input should be greater than 0"),
        (["--set", "behavior.levels=3"], r"behavior\.levels = 3 is wrong"),
        (
            ["--set", "behavior.levels.medium=600"],
            r"behavior\.levels is wrong: expert = 531\.0 must be above medium = 600",
        ),
        (["--set", "behavior.ppo.clip=0.2"], r"key 'behavior\.ppo\.rollout_steps' is missing"),
        (["--set", "behavior.gamma"], r"--set takes key=value .*, not 'behavior\.gamma'"),
        (["--recipe", "cooperative-navigtion"], r"unknown recipe .*: did you mean 'cooperative-navigation'"),
        (
            ["--recipe", "missing.toml"],
            r"recipe file missing\.toml does not exist; bundled recipes: ant-2x4, cooperative-nav",
        ),
        (["--transitions", "0"], r"transitions must be 1 or more, not 0"),
        (["--mix", "0.5"], r"only makes sense for tier medium-expert, not for random"),
        (["--tier", "medium-expert", "--mix", "1.5"], r"share must lie in \[0, 1\], not 1\.5"),
        (["--tier", "medium-expert", "--mix", "-0.1"], r"share must lie in \[0, 1\], not -0\.1"),
        (["--tier", "medium-expert", "--mix", "nan"], r"share must lie in \[0, 1\], not nan"),
        (["--version", "0"], r"random-v0 exists already in datasets: overwrite it or write .*/random-v1"),
        (["--root", "file"], r"file is not a folder that you may write to"),
        (["--root", "file/below"], r"file is not a folder that you may write to"),
    ],
)
def test_generate_refuses(arguments: list[str], message: str, run: Run, here: Path) -> None:
    defaults = {"--env": "cn", "--tier": "random", "--version": "1", "--transitions": "50"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    before = contents(here)
    found = run("om2p-data", "generate", "--quiet", *(word for pair in (defaults | given).items() for word in pair))
    assert_one_line(found, message)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[behavior]\ngama = 0.9\n", r"mine\.toml: (unknown key 'behavior\.gama'|key 'behavior)"),
        ("[behavior\n", r"mine\.toml is not valid TOML: "),
        ("", r"mine\.toml: key 'behavior' is missing"),
        ("behavior = 3\n", r"mine\.toml: behavior = 3 is wrong"),
    ],
)
def test_generate_refuses_a_recipe_file(text: str, message: str, run: Run, here: Path) -> None:
    (here / "mine.toml").write_text(text)
    before = contents(here)
    found = run("om2p-data", "generate", "--env", "cn", "--tier", "random", "--version", "1", "--recipe", "mine.toml")
    assert_one_line(found, message)
    assert contents(here) == before


def test_a_recipe_file_with_one_wrong_key_among_right_ones(run: Run, here: Path) -> None:
    (here / "mine.toml").write_text(recipe_text({"n_step = 5": "n_steps = 5\nn_step = 5"}))
    found = run("om2p-data", "train", "--env", "cn", "--recipe", "mine.toml")
    message = r"error: mine\.toml: unknown key 'behavior\.td3\.n_steps': did you mean 'behavior\.td3\.n_step'"
    assert_one_line(found, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--until", "expart"], r"unknown level 'expart': did you mean 'expert'\? valid: medium, expert"),
        (["--env", "hcc"], r"unknown environment 'hcc': did you mean 'hc'"),
        (["--recipe", "word"], r"unknown recipe 'word': did you mean 'world'"),
    ],
)
def test_behaviour_training_refuses(arguments: list[str], message: str, run: Run, here: Path) -> None:
    before = contents(here)
    given = {"--env": "cn"} | dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert_one_line(run("om2p-data", "train", *(word for pair in given.items() for word in pair)), message)
    assert contents(here) == before


def test_behaviour_policies_that_cannot_be_kept(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", "file/below")
    before = contents(here)
    for command in (["train"], ["generate", "--tier", "medium", "--fresh"], ["generate", "--tier", "medium-replay"]):
        assert_one_line(run("om2p-data", *command, "--env", "cn"), r"cannot write behaviour policies to file/below/")
    assert contents(here) == before


@pytest.mark.parametrize("until", ["medium", "expert"])
def test_teams_that_cannot_be_copied_are_not_trained(until: str, run: Run, here: Path) -> None:
    before = contents(here)
    arguments = ["train", "--env", "cn", "--until", until, "--quiet", "--out"]
    for out in ("file", "file/below"):
        assert_one_line(run("om2p-data", *arguments, out), rf"cannot write to {out}: (File exists|Not a directory)$")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--env", "cn"],
            r"recipe of cooperative-navigation has no table \[prey\]: valid tasks: predator-prey, world$",
        ),
        (
            ["--env", "cn", "--recipe", "predator-prey"],
            r"cooperative-navigation has no prey: valid: predator-prey, world",
        ),
        (["--set", "prey.hidden=[8]"], r"recipe predator-prey: key 'prey\.hidden\.1' is missing"),
        (["--set", "prey.max_steps=100"], r"random predators never fell to -4\.1 within prey\.max_steps = 100$"),
        (["--out", "datasets"], r"cannot write datasets: it is a folder, name a file$"),
        (["--out", "file/below"], r"cannot write to file: File exists$"),
    ],
)
def test_prey_training_refuses(arguments: list[str], message: str, run: Run, here: Path) -> None:
    given = {"--env": "pp", "--out": "prey.safetensors"} | dict(zip(arguments[::2], arguments[1::2], strict=True))
    before = contents(here)
    found = run("om2p-data", "train-prey", "--quiet", *(word for pair in given.items() for word in pair))
    assert_one_line(found, message)
    assert contents(here) == before


def test_a_level_out_of_reach(run: Run, here: Path) -> None:
    settings = ["max_steps=1", "evaluation_episodes=10", "judging_episodes=10"]
    arguments = [word for setting in settings for word in ("--set", f"behavior.{setting}")]
    found = run("om2p-data", "generate", "--env", "cn", "--tier", "expert", "--fresh", "--quiet", *arguments)
    message = r"stopped at 3200 environment steps .* the medium level is 259\.7 to 287\.1: raise behavior\.max_steps"
    assert_one_line(found, message)
    assert not (here / "datasets" / "om2p" / "cooperative-navigation" / "expert-v0").exists()
