"""The training loop: what a run leaves behind, that it repeats, and that an interruption changes nothing."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from om2p_data import checkpoints
from om2p_data.behavior import training
from om2p_data.behavior.config import EXPERT, LEVELS, MEDIUM
from om2p_data.behavior.policy import GaussianNoise, UniformPolicy, load_actor
from om2p_data.behavior.runs import Run
from om2p_data.envs import make
from om2p_data.envs.registry import find
from om2p_data.errors import UserError
from om2p_data.rollout import team_returns
from om2p_data.tiers import DataRecipe

pytestmark = pytest.mark.usefixtures("one_thread")
CN = find("cn")


def read_log(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def teams(folder: Path) -> dict[str, dict]:
    """The cards of the kept policies, but for the time that they took."""
    cards = {level: load_actor(folder / f"{level}.safetensors", CN)[1] for level in LEVELS}
    return {level: {key: value for key, value in card.items() if key != "seconds"} for level, card in cards.items()}


# What a run leaves


def test_a_run_leaves_two_teams_what_was_collected_and_a_log(home: Path, tiny: DataRecipe) -> None:
    config = tiny.behavior
    folder = training.run_folder(CN, config, seed=0)
    assert folder.is_relative_to(home)
    assert {path.name for path in folder.iterdir()} == {
        "medium.safetensors",
        "expert.safetensors",
        "collected",
        "log.csv",
    }
    cards, log = teams(folder), read_log(folder)
    steps = config.num_envs * config.segment_steps
    assert [row["env_steps"] for row in log] == list(range(steps, cards[EXPERT]["env_steps"] + 1, steps))
    learning = [row["updates"] for row in log]
    assert learning == [max(0, config.segment_steps * i) for i in range(len(log))]  # after one segment of warming up
    for level, card in cards.items():
        assert (card["level"], card["seed"], card["algorithm"], card["prey"]) == (level, 0, "matd3", None)
        assert card["recipe"] == config.model_dump(mode="json", exclude_none=True)
        assert card["fingerprint"] in folder.name
        assert card["episodes"] == config.judging_episodes
        assert card["collection_noise"] == config.collection_noise
        crossing = next(row for row in log if row["env_steps"] == card["env_steps"])
        assert card["updates"] == crossing["updates"]
        low, high = config.levels.window(level)
        assert crossing["return_mean"] >= low
        assert low <= card["return_mean"] <= high
        assert 0 < card["line_share"] <= 1
    assert cards[MEDIUM]["updates"] < cards[EXPERT]["updates"]
    assert cards[MEDIUM]["hash"] != cards[EXPERT]["hash"]
    assert cards[MEDIUM]["collected_steps"] * config.num_envs == cards[MEDIUM]["env_steps"]
    bytes_of_rewards = cards[MEDIUM]["env_steps"] * CN.num_agents * 4
    assert (folder / "collected" / "rewards.bin").stat().st_size == bytes_of_rewards


def test_what_is_there_is_not_trained_again(home: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    del home
    config = tiny.behavior

    def forbidden(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Run, "advance", forbidden)
    folder = training.train(CN, config, seed=0, progress=False)
    for level in LEVELS:
        milestone = training.obtain(CN, level, config, seed=0, progress=False)
        assert milestone.card == load_actor(folder / f"{level}.safetensors", CN)[1]
        assert milestone.card["hash"] == milestone.actor.content_hash()
        assert milestone.origin == str(folder)
    with pytest.raises(AssertionError, match="trained again"):
        training.obtain(CN, EXPERT, config, seed=1, progress=False)


def test_whatever_changes_a_number_changes_the_folder(tiny: DataRecipe) -> None:
    config = tiny.behavior
    assert config.td3 is not None
    folder = training.run_folder(CN, config, seed=0)
    others = [
        training.run_folder(
            CN, config.model_copy(update={"td3": config.td3.model_copy(update={"gamma": 0.8})}), seed=0
        ),
        training.run_folder(CN, config.model_copy(update={"collection_noise": 0.2}), seed=0),
        training.run_folder(CN, config.model_copy(update={"judging_episodes": 401}), seed=0),
        training.run_folder(CN, config, seed=1),
        training.run_folder(find("pp"), config, seed=0),
    ]
    assert len({folder, *others}) == 6
    assert training.run_folder(CN, config.model_copy(update={"max_steps": 7}), seed=0) == folder


def test_the_recorded_return_is_what_the_team_scores(home: Path, tiny: DataRecipe) -> None:
    """On other starts and with other noise, within four standard errors."""
    del home
    milestone = training.obtain(CN, EXPERT, tiny.behavior, seed=0, progress=False)
    policy = GaussianNoise(milestone.actor, tiny.behavior.collection_noise)
    returns = team_returns(policy, make("cn", 2_000), seed=12345)
    error = milestone.card["return_std"] / np.sqrt(milestone.card["episodes"])
    assert abs(returns.mean() - milestone.card["return_mean"]) < 4 * error
    assert abs(returns.mean() - team_returns(UniformPolicy(CN), make("cn", 2_000), seed=1).mean()) > 2 * error


def test_another_seed_gives_another_team(
    home: Path, tiny: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = training.obtain(CN, MEDIUM, tiny.behavior, seed=0, progress=False)
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    same, other = (training.obtain(CN, MEDIUM, tiny.behavior, seed, progress=False) for seed in (0, 1))
    assert one.origin.startswith(str(home))
    assert same.origin.startswith(str(tmp_path))
    assert one.card["hash"] == same.card["hash"] != other.card["hash"]


# Refusals


def test_two_processes_do_not_train_the_same_run(
    tiny: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    folder = training.run_folder(CN, tiny.behavior, seed=1)
    folder.mkdir(parents=True)
    holding = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        message = f"^another process is training cooperative-navigation in {re.escape(str(folder))}: wait for it$"
        with pytest.raises(UserError, match=message):
            training.train(CN, tiny.behavior, seed=1, until=MEDIUM, progress=False)
        assert list(folder.iterdir()) == []
        other.stdin.close()
    training.train(CN, tiny.behavior, seed=1, until=MEDIUM, progress=False)
    assert (folder / "medium.safetensors").exists()


def test_a_home_that_cannot_be_written(tmp_path: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OM2P_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^cannot write behaviour policies to .*: Not a directory$"):
        training.obtain(CN, MEDIUM, tiny.behavior, seed=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up(tmp_path: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)

    def full(path: Path, content: bytes) -> int:
        del path, content
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"^cannot write behaviour policies to .*: No space left on device$"):
            training.train(CN, tiny.behavior, seed=0, progress=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder / "collected"),
        lambda folder: (folder / "collected" / "obs.bin").unlink(),
        lambda folder: (folder / "collected" / "terminated.bin").write_bytes(b"no"),
    ],
)
def test_a_damaged_memory_is_named(
    damage: Callable[[Path], object], home: Path, tiny: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("OM2P_HOME", str(tmp_path / "home"))
    folder = training.run_folder(CN, tiny.behavior, seed=0)
    assert training.obtain_replay(CN, tiny.behavior, seed=0, progress=False)[0].num_episodes > 100
    damage(folder)
    place = re.escape(str(folder))
    message = f"^cannot read the replay memory {place}/collected: .*; delete {place} to train anew$"
    with pytest.raises(UserError, match=message) as caught:
        training.obtain_replay(CN, tiny.behavior, seed=0, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "checkpoint.safetensors").write_bytes(b"no"),
            "^checkpoint .*checkpoint.safetensors cannot be read: .*; delete it to start anew$",
        ),
        (
            lambda folder: save_file({"a": torch.zeros(1)}, folder / "checkpoint.safetensors"),
            "^checkpoint .*checkpoint.safetensors cannot be read: .*; delete it to start anew$",
        ),
        (
            lambda folder: checkpoints.save(folder / "checkpoint.safetensors", {"landed": [], "run": {"segments": 1}}),
            "^cannot go on in .*: 'env_steps'; delete it to train anew$",
        ),
        (
            lambda folder: (folder / "collected" / "actions.bin").write_bytes(b"no"),
            "^cannot go on in .*: actions.bin in .*collected is too short; delete it to train anew$",
        ),
        (
            lambda folder: (folder / "collected" / "actions.bin").unlink(),
            "^cannot go on in .*No such file.*; delete it to train anew$",
        ),
    ],
)
def test_a_damaged_interrupted_run_is_named(
    damage: Callable[[Path], object],
    message: str,
    tiny: DataRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    short = tiny.behavior.model_copy(update={"max_steps": 3_000})
    with pytest.raises(UserError, match="stopped at 3200 environment steps"):
        training.train(CN, short, seed=0, progress=False)
    folder = training.run_folder(CN, short, seed=0)
    assert {path.name for path in folder.iterdir()} == {"checkpoint.safetensors", "collected"}
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        training.train(CN, tiny.behavior, seed=0, progress=False)
    assert "\n" not in str(caught.value)
