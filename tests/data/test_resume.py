"""Interrupted behaviour trainings: they end as if nothing had happened, number for number."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from om2p_data import checkpoints
from om2p_data.behavior import training
from om2p_data.behavior.config import EXPERT, LEVELS, MEDIUM, BehaviorConfig
from om2p_data.behavior.policy import load_actor
from om2p_data.behavior.runs import Run
from om2p_data.envs.registry import find

from .test_runs import PPO_SETTINGS, ppo_recipe, td3_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
CN = find("cn")
FEW: dict[str, Any] = {"evaluation_episodes": 100, "judging_episodes": 200}
# Medium is reached after 5 and 4 segments, expert after 9, by TD3 with policies between two segments.
RECIPES = {
    "td3": td3_recipe(levels={"medium": 92.0, "expert": 108.0}, **FEW),
    "ppo": ppo_recipe(ppo=PPO_SETTINGS.model_copy(update={"learning_rate": 6e-3}), **FEW),
}


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def without_clock(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "seconds"}


@pytest.fixture(scope="module", params=list(RECIPES))
def config(request: pytest.FixtureRequest) -> BehaviorConfig:
    return RECIPES[request.param]


def left_behind(config: BehaviorConfig) -> dict[str, Any]:
    """Everything that a finished run leaves, but for the time it took."""
    folder = training.run_folder(CN, config, seed=0)
    found: dict[str, Any] = {"files": sorted(path.name for path in folder.rglob("*"))}
    for level in LEVELS:
        path = folder / f"{level}.safetensors"
        found[level] = without_clock(load_actor(path, CN)[1])
        found[f"weights of {level}"] = {name: value.tolist() for name, value in load_file(path).items()}
    with (folder / "log.csv").open() as file:
        found["log"] = [without_clock(row) for row in csv.DictReader(file)]
    for path in (folder / "collected").iterdir():
        found[path.name] = path.read_bytes()
    episodes, milestone = training.obtain_replay(CN, config, seed=0, progress=False)
    assert episodes.num_transitions == milestone.card["env_steps"]
    found["replay"] = episodes.content_hash()
    return found


def kill_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Environment steps until the program dies, perhaps in the middle of a segment."""
    collect, left = Run._collect, [steps]

    def mortal(run: Run, *arguments: Any) -> tuple[np.ndarray, ...]:
        left[0] -= run.config.num_envs
        if left[0] < 0:
            raise Killed
        return collect(run, *arguments)

    patch.setattr(Run, "_collect", mortal)


@pytest.fixture(scope="module")
def whole(config: BehaviorConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted training leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OM2P_HOME", str(tmp_path_factory.mktemp("whole")))
        training.train(CN, config, seed=0, progress=False)
        return left_behind(config)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))


def test_a_killed_training_ends_as_if_nothing_had_happened(
    config: BehaviorConfig, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first checkpoint, before the medium level and after it, each time in the middle of a segment.

    Every second checkpoint is left out, so the memory's files are longer than what the next one starts from.
    """
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    save, count = checkpoints.save, [0]

    def sometimes(path: Path, state: dict[str, Any]) -> None:
        count[0] += 1
        if count[0] % 2 == 0:
            save(path, state)

    monkeypatch.setattr(checkpoints, "save", sometimes)
    folder = training.run_folder(CN, config, seed=0)
    checkpoint, segment = folder / "checkpoint.safetensors", config.num_envs * config.segment_steps
    medium, expert = (whole[level]["env_steps"] // segment for level in LEVELS)
    assert 4 <= medium <= expert - 2, "this test needs other levels"
    assert config.ppo is not None or whole[EXPERT]["line_share"] < 1, "this test needs other levels"

    def die_after(segments: float) -> None:
        with monkeypatch.context() as patch:
            kill_after(patch, round(segments * segment))
            with pytest.raises(Killed):
                training.train(CN, config, seed=0, progress=False)

    die_after(0.5)
    assert not checkpoint.exists()
    die_after(3.5)
    assert checkpoints.load(checkpoint)["run"]["env_steps"] == 2 * segment
    assert (folder / "collected" / "rewards.bin").stat().st_size == 3 * segment * CN.num_agents * 4
    assert not (folder / "medium.safetensors").exists()
    die_after(medium - 0.5)
    assert (folder / "medium.safetensors").exists()
    training.train(CN, config, seed=0, progress=False)
    found = left_behind(config)
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        assert found[key] == value, key


def test_one_level_after_the_other_is_the_same_as_both(config: BehaviorConfig, whole: dict[str, Any]) -> None:
    folder = training.train(CN, config, seed=0, until=MEDIUM, progress=False)
    assert not (folder / "expert.safetensors").exists()
    replay, _ = training.obtain_replay(CN, config, seed=0, progress=False)
    assert replay.content_hash() == whole["replay"]
    training.train(CN, config, seed=0, progress=False)
    assert left_behind(config) == whole
