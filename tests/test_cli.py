"""Both command lines: what they offer, what they do, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import minari
import pytest
import torch
from om2p_cli import data, train
from typer.testing import CliRunner

from om2p_data.envs import TASKS
from om2p_data.recipe import bundled

PROGRAMS = {"om2p-data": data, "om2p-train": train}
RANDOM_ID = "om2p/cooperative-navigation/random-v0"
TINY_RUN = [
    "run", "--algo", "bc", "--dataset", RANDOM_ID, "--seeds", "0,3", "--quiet", "--threads", "1", "--no-tensorboard",
    "--set", "run.updates=20", "--set", "run.evaluate_every=10", "--set", "run.evaluation_episodes=4",
    "--set", "options.hidden=[8]",
]  # fmt: skip


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # --threads sets it for the whole process


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """The whole way of a command line, from its arguments to its exit code."""

    def invoke(program: str, *arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            PROGRAMS[program].main()
        return Result(int(caught.value.code or 0), *capsys.readouterr())

    return invoke


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in `datasets` and a finished run in `runs/bc`, made by the two command lines."""
    folder = tmp_path_factory.mktemp("workspace")
    environment = {"MINARI_DATASETS_PATH": str(folder / "datasets"), "OM2P_HOME": str(folder / "home")}
    runner = CliRunner(env=environment)
    generate = ["generate", "--env", "cn", "--tier", "random", "--transitions", "500", "--quiet"]
    for app, arguments in ((data.app, generate), (train.app, [*TINY_RUN, "--out", str(folder / "runs" / "bc")])):
        made = runner.invoke(app, arguments)
        assert made.exit_code == 0, made.output
    return folder


@pytest.fixture
def here(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace, and the working directory."""
    copy = tmp_path / "here"
    shutil.copytree(workspace, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "datasets")
    monkeypatch.setenv("OM2P_HOME", "home")
    (copy / "file").touch()
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def assert_one_line(found: Result, message: str) -> None:
    assert found.code == 2
    assert found.err.endswith("\n")
    assert found.err.count("\n") == 1, found.err
    assert found.err.startswith("error: ")
    assert re.search(message, found.err), found.err
    assert found.out == ""


# What they offer


def help_of(program: str, *command: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(
        PROGRAMS[program].app, [*command, "--help"]
    )
    assert result.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


@pytest.mark.parametrize(
    ("program", "command", "words"),
    [
        ("om2p-data", [], "generate train train-prey list envs"),
        (
            "om2p-data",
            ["generate"],
            "--env --tier --transitions --mix --seed --fresh --version --recipe --set --root --overwrite --quiet "
            "medium-replay 1,000,000 0.1 0.001",
        ),
        ("om2p-data", ["train"], "--env --until --seed --recipe --set --out --quiet medium expert"),
        ("om2p-data", ["train-prey"], "--env --out --seed --recipe --set --quiet pp world"),
        ("om2p-data", ["list"], "--root MINARI_DATASETS_PATH"),
        ("om2p-train", [], "run report render recipes"),
        (
            "om2p-train",
            ["run"],
            "--dataset --algo --seeds --scale --device --set --out --root --overwrite --tensorboard --threads "
            "--quiet 0-4 0,2,5 cpu paper cuda",
        ),
        ("om2p-train", ["report"], "RUNS --out table.md curves.png"),
        ("om2p-train", ["render"], "POLICY --out --seed --episodes --max-steps GIF"),
    ],
)
def test_help_mentions_the_options(program: str, command: list[str], words: str) -> None:
    text = help_of(program, *command).lower()
    assert [word for word in words.split() if word.lower() not in text] == []


def test_lists_of_what_there_is(run: Run, here: Path) -> None:
    envs = run("om2p-data", "envs")
    assert envs.code == 0
    assert [line.split()[0] for line in envs.out.splitlines()[1:-1]] == list(TASKS)
    assert run("om2p-train", "recipes") == (0, "".join(f"{name}\n" for name in bundled("train")), "")
    listed = run("om2p-data", "list")
    assert (listed.code, listed.err) == (0, "")
    assert re.search(rf"^{RANDOM_ID} +500 +20 +\d+\.\d ± \d+\.\d +\d+\.\d$", listed.out, re.MULTILINE)
    nothing = run("om2p-data", "list", "--root", here / "empty")
    assert (nothing.code, nothing.out.startswith(f"no data sets in {here / 'empty'}")) == (0, True)


# What they do


def test_generate_train_report_and_render(run: Run, here: Path) -> None:
    made = run(
        "om2p-data", "generate", "--env", "cn", "--tier", "random", "--transitions", 260, "--version", 2, "--quiet"
    )
    assert (made.code, made.err) == (0, "")
    assert re.match(r"om2p/cooperative-navigation/random-v2: 275 transitions in 11 episodes, return ", made.out)
    assert "(published: 159.6)" in made.out
    assert minari.load_dataset("om2p/cooperative-navigation/random-v2").total_steps == 275

    trained = run("om2p-train", *TINY_RUN)
    assert (trained.code, trained.err) == (0, "")
    folder = Path("runs", "cooperative-navigation", "random", "bc")
    assert trained.out.endswith(f"\nin {folder}\n")
    assert sorted(path.name for path in (folder / "policies").iterdir()) == ["seed0.safetensors", "seed3.safetensors"]
    assert json.loads((folder / "run.json").read_text())["finished"]

    report = run("om2p-train", "report", folder, "runs/bc", "--out", "report")
    assert (report.code, report.err) == (0, "")
    assert len(re.findall(r"^\| bc ", report.out, re.MULTILINE)) == 2
    assert (here / "report" / "table.md").read_text().strip() in report.out
    assert (here / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")

    policy = folder / "policies" / "seed0.safetensors"
    drawn = run("om2p-train", "render", policy, "--max-steps", 2, "--episodes", 2, "--out", "pictures/a.gif")
    assert re.fullmatch(r"wrote pictures/a\.gif: 6 frames, returns -?\d+\.\d, -?\d+\.\d\n", drawn.out)
    assert (here / "pictures" / "a.gif").read_bytes().startswith(b"GIF89a")


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


def test_a_data_set_folder_that_cannot_be_made(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(here / "file" / "below"))
    before = contents(here)
    message = "cannot make the data set folder: .*MINARI_DATASETS_PATH"
    assert_one_line(run("om2p-data", "list"), message)
    assert_one_line(run("om2p-data", "generate", "--env", "cn", "--tier", "random"), message)
    assert_one_line(run("om2p-train", *TINY_RUN), message)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "om2pp"], r"unknown recipe 'om2pp': did you mean 'om2p'"),
        (["--algo", "missing.toml"], r"recipe file missing\.toml does not exist; bundled recipes: bc, om2p"),
        (["--dataset", "cn-medium"], r"malformed data set id 'cn-medium'"),
        (
            ["--dataset", "om2p/cooperative-navigation/randm-v0"],
            rf"no data set om2p/.*/randm-v0 in datasets: did you mean {RANDOM_ID}\? ",
        ),
        (["--scale", "papr"], r"unknown scale 'papr': did you mean 'paper'"),
        (["--set", "options.hiden=[8]"], r"recipe bc: unknown key 'options\.hiden': did you mean 'options\.hidden'"),
        (["--set", "optons.hidden=[8]"], r"recipe bc: unknown key 'optons': did you mean 'options'"),
        (["--set", "run.updates=many"], r"recipe bc: run\.updates = 'many' is wrong: Input should be a valid integer"),
        (["--set", "run.updates=0"], r"recipe bc: run\.updates = 0 is wrong: Input should be greater than 0"),
        (["--set", "options.hidden=[0]"], r"recipe bc: options\.hidden\.0 = 0 is wrong"),
        (["--set", "run=5"], r"recipe bc: run = 5 is wrong"),
        (["--set", "run.updates"], r"--set takes key=value"),
        (["--seeds", "a"], r"--seeds takes numbers and ranges such as 0-4 or 0,2,5, not 'a'"),
        (["--seeds", ""], r"--seeds takes numbers"),
        (["--seeds", "-1"], r"--seeds takes numbers"),
        (["--seeds", "3-1"], r"--seeds '3-1' names no seed: write the smaller number first"),
        (["--seeds", "1,1"], r"seeds must be different numbers from 0 up, not \[1, 1\]"),
        (["--device", "gpu"], r"device 'gpu' cannot be used: .*'cpu' always can"),
        (["--device", "meta"], r"device 'meta' cannot be used: .*'cpu' always can"),
        (["--device", "hpu"], r"device 'hpu' cannot be used: .*'cpu' always can"),
        (["--out", "runs/bc"], r"runs/bc holds a run already: choose another --out, or add --overwrite"),
        (["--out", "runs"], r"runs is not empty and not only a run"),
        (["--out", "file"], r"cannot write to file: File exists"),
        (["--out", "file/below"], r"cannot write to file/below: Not a directory"),
        (["--root", "elsewhere"], rf"no data set {RANDOM_ID} in elsewhere: to make it, run: om2p-data generate"),
    ],
)
def test_run_refuses(arguments: list[str], message: str, run: Run, here: Path) -> None:
    before = contents(here)
    # click lets the last of two win; --set is repeatable, and later settings win too.
    assert_one_line(run("om2p-train", *TINY_RUN, "--out", "new", *arguments), message)
    assert contents(here) == before


def test_run_refuses_options_that_make_no_sense_together(run: Run, here: Path) -> None:
    before = contents(here)
    arguments = ["run", "--dataset", RANDOM_ID, "--out", "new", "--set", "options.xi=[-2, 0, 0, 0]"]
    assert_one_line(run("om2p-train", *arguments), r"xi = \[-2\.0, .*must be greater than -1")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('algorithm = "om2q"\n', r"unknown algorithm 'om2q': did you mean 'om2p'"),
        ("[run]\nupdates = 3\n", r"mine\.toml: key 'algorithm' is missing; valid: bc, om2p"),
        ('base = "bc"\n[optins]\n', r"mine\.toml: unknown key 'optins': did you mean 'options'"),
        ('base = "bc"\n[options]\neta = 1.0\n', r"mine\.toml: unknown key 'options\.eta'"),
        ('base = "bd"\n', r"unknown recipe 'bd': did you mean 'bc'"),
        ('base = "bc"\n[scale.cpuu.run]\n', r"mine\.toml: unknown section in \[scale\] 'cpuu': did you mean 'cpu'"),
        ('base = "bc"\n[task.hc.options]\n', r"mine\.toml: unknown section in \[task\] 'hc'"),
        ("algorithm = bc\n", r"mine\.toml is not valid TOML: "),
        ("algorithm = 3\n", r"mine\.toml: algorithm = 3 is wrong: it must be a name"),
        ('base = ["bc"]\n', r"mine\.toml: base = \['bc'\] is wrong: it must be a name"),
        ('base = "mine.toml"\n', r"mine\.toml: base = 'mine\.toml' leads back to itself"),
        ('base = "bc"\nscale = 3\n', r"mine\.toml: scale = 3 is wrong: it must be a table"),
        ('base = "bc"\n[task]\ncooperative-navigation = 3\n', r"navigation = 3 is wrong: it must be a table"),
        ('base = "bc"\n[task.cooperative-navigation]\nrandom = 3\n', r"random = 3 is wrong: it must be a table"),
        ('base = "bc"\n[task.cooperative-navigation.randm]\n', r"unknown key in .* 'randm': did you mean 'random'"),
        ('base = "bc"\n[scale.cpu.optins]\n', r"mine\.toml: unknown key 'optins': did you mean 'options'"),
    ],
)
def test_run_refuses_a_recipe_file(text: str, message: str, run: Run, here: Path) -> None:
    (here / "mine.toml").write_text(text)
    before = contents(here)
    assert_one_line(run("om2p-train", *TINY_RUN, "--algo", "mine.toml", "--out", "new"), message)
    assert contents(here) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_run_refuses_a_missing_gpu(run: Run, here: Path) -> None:
    assert_one_line(run("om2p-train", *TINY_RUN, "--out", "new", "--device", "cuda"), "device 'cuda' cannot be used: ")
    assert not (here / "new").exists()


def test_a_data_set_of_a_tier_of_its_own_can_be_trained_on(run: Run, here: Path) -> None:
    """Somebody's mixture has no section in the recipes; it gets the task's."""
    folder = here / "datasets" / "om2p" / "cooperative-navigation"
    (folder / "random-v0").rename(folder / "mixture-v0")
    metadata = folder / "mixture-v0" / "data" / "metadata.json"
    metadata.write_text(metadata.read_text().replace("random-v0", "mixture-v0").replace('"random"', '"mixture"'))
    found = run("om2p-train", *TINY_RUN, "--dataset", "om2p/cooperative-navigation/mixture-v0")
    assert (found.code, found.err) == (0, "")
    assert found.out.endswith("\nin runs/cooperative-navigation/mixture/bc\n")


def rewrite_facts(folder: Path, **changes: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_report_refuses(run: Run, here: Path) -> None:
    bad = here / "runs" / "bad"

    def fails(message: str, *arguments: object) -> None:
        before = contents(here)
        assert_one_line(run("om2p-train", "report", *arguments), message)
        assert contents(here) == before

    fails(r"datasets is not a run folder: it has no run\.json", "datasets")
    fails(r"missing is not a run folder: it has no run\.json", "runs/bc", "missing")
    fails(r"file is not a run folder", "file")
    shutil.copytree("runs/bc", bad)
    rewrite_facts(bad, dataset="om2p/cooperative-navigation/expert-v0")
    fails(
        rf"different data sets: om2p/cooperative-navigation/expert-v0, {RANDOM_ID}; report one at a time",
        "runs/bc", bad, "--out", "report",
    )  # fmt: skip
    rewrite_facts(bad, finished=False)
    fails(r"the run in .*bad has not finished", bad)
    rewrite_facts(bad, finished=True, seeds=None)
    fails(r"the run in .*bad is damaged: TypeError", bad)
    (bad / "run.json").write_text("{")
    fails(r"the run in .*bad is damaged: JSONDecodeError", bad)
    shutil.copy("runs/bc/run.json", bad)
    (bad / "evaluations.csv").unlink()
    fails(r"the run in .*bad is damaged: FileNotFoundError", bad)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_report_to_where_nothing_can_be_written(out: str, run: Run, here: Path) -> None:
    before = contents(here)
    found = run("om2p-train", "report", "runs/bc", "--out", out)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert found.err.startswith(f"error: cannot write {out}/curves.png: ")
    assert contents(here) == before


def test_render_refuses(run: Run, here: Path) -> None:
    policy = Path("runs/bc/policies/seed0.safetensors")
    (here / "damaged.safetensors").write_bytes(policy.read_bytes()[:-8])
    before = contents(here)
    for arguments, message in (
        (["runs/bc/policies/seed1.safetensors"], r"policy file runs/bc/policies/seed1\.safetensors does not exist"),
        (["runs/bc"], r"policy file runs/bc does not exist"),
        (["file"], r"cannot read the policy file: "),
        (["damaged.safetensors"], r"cannot read the policy damaged\.safetensors: "),
        (["runs/bc/checkpoint.safetensors"], r"cannot read the policy runs/bc/checkpoint\.safetensors: "),
        ([policy, "--max-steps", 1, "--out", "file/below.gif"], r"cannot write file/below\.gif: "),
    ):
        assert_one_line(run("om2p-train", "render", *arguments), message)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("om2p-data", ["genrate"], "No such command 'genrate'"),
        ("om2p-data", ["generate", "--env", "cn"], "Missing option '--tier'"),
        ("om2p-data", ["generate", "--env", "cn", "--tier", "random", "--transitions", "many"], "'--transitions'"),
        ("om2p-data", ["generate", "--env", "cn", "--tier", "random", "--seed", "-1"], "'--seed'"),
        ("om2p-data", ["generate", "--env", "cn", "--teer", "random"], "No such option: --teer"),
        ("om2p-train", ["run"], "Missing option '--dataset'"),
        ("om2p-train", ["run", "--dataset", RANDOM_ID, "--threads", "0"], "'--threads'"),
        ("om2p-train", ["report"], "Missing argument"),
        ("om2p-train", ["render", "a", "--episodes", "0"], "'--episodes'"),
    ],
)
def test_wrong_usage(program: str, arguments: list[str], message: str, run: Run, here: Path) -> None:
    before = contents(here)
    found = run(program, *arguments)
    assert found.code == 2
    assert message in re.sub(r"\x1b\[[0-9;]*m", "", found.err)
    assert "Traceback" not in found.err
    assert contents(here) == before


# The installed programs


def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name(program)
    return subprocess.run([script, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (
            "om2p-data",
            ["generate", "--env", "cnn", "--tier", "medium"],
            "unknown environment 'cnn': did you mean",
        ),
        ("om2p-train", ["report", "datasets"], "datasets is not a run folder"),
    ],
)
def test_a_real_process_ends_with_code_2_and_one_line(
    program: str, arguments: list[str], message: str, here: Path
) -> None:
    before = contents(here)
    found = call(program, *arguments)
    assert_one_line(Result(found.returncode, found.stdout, found.stderr), message)
    assert contents(here) == before


def test_a_real_process_ends_with_code_0(here: Path) -> None:
    del here
    assert call("om2p-train", "recipes").stdout.split() == bundled("train")
    wrong = call("om2p-data", "generate")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Missing option" in wrong.stderr
