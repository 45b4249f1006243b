"""Runs of behaviour training: what is collected, what reaches the learners, and what a segment is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from om2p_data import checkpoints, tiers
from om2p_data.behavior import runs
from om2p_data.behavior.config import BehaviorConfig, Levels, PPOConfig
from om2p_data.behavior.ppo import PPO, Steps
from om2p_data.behavior.td3 import TD3
from om2p_data.envs.registry import find
from om2p_data.recipe import merge

from .conftest import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
CN = find("cn")
PPO_SETTINGS = PPOConfig(
    rollout_steps=25,
    epochs=4,
    minibatch=400,
    learning_rate=3e-3,
    gamma=0.9,
    gae_lambda=0.9,
    clip=0.2,
    entropy_cost=0.0,
    initial_noise=0.5,
    max_gradient=0.5,
)


def td3_recipe(**settings: Any) -> BehaviorConfig:
    return tiers.load_recipe(CN, None, merge(TINY, {"behavior": settings})).behavior


def ppo_recipe(**settings: Any) -> BehaviorConfig:
    """It starts at a return of 164, and passes 180 after some 20,000 steps."""
    levels = Levels(medium=172.0, expert=177.0)
    return td3_recipe().model_copy(update={"td3": None, "ppo": PPO_SETTINGS, "levels": levels} | settings)


def held(run: runs.Run) -> dict[str, np.ndarray]:
    """Everything in a run's memory, [T, E, ...]."""
    assert run.memory is not None
    return {name: column[: run.memory.steps] for name, column in vars(run.memory)["_columns"].items()}


RECIPES = {
    "td3": td3_recipe(segment_steps=30, td3={"updates_per_step": 0.75}),  # after two segments half an update is due
    "ppo": ppo_recipe(segment_steps=30),
}
BOTH = pytest.mark.parametrize("config", RECIPES.values(), ids=list(RECIPES))


def started(config: BehaviorConfig, seed: int = 0) -> runs.Run:
    if config.ppo is not None:  # 30 steps are three rounds
        config = config.model_copy(update={"ppo": config.ppo.model_copy(update={"rollout_steps": 10})})
    return runs.start(CN, config, seed)


@BOTH
def test_a_segment_is_so_many_steps_of_restarted_worlds(config: BehaviorConfig) -> None:
    """The episodes of 25 steps that the segment's 30 cut are recorded as out of time."""
    run = started(config)
    for segment in (1, 2, 3):
        run.advance()
        assert (run.segments, run.env_steps) == (segment, segment * 30 * 32)
    columns = held(run)
    assert len(columns["obs"]) == 90
    assert not columns["terminated"].any()
    ends = np.flatnonzero(columns["truncated"].all(1))
    assert ends.tolist() == [24, 29, 54, 59, 84, 89]
    assert columns["truncated"].sum() == len(ends) * 32
    np.testing.assert_array_equal(columns["obs"][ends[:-1] + 1, :, :, :2], 0)  # new episodes start at rest
    starts = columns["obs"][[0, 30, 60]].reshape(96, -1)
    assert len(np.unique(starts, axis=0)) == 96
    inside = np.setdiff1d(np.arange(89), ends)
    np.testing.assert_array_equal(columns["next_obs"][inside], columns["obs"][inside + 1])
    np.testing.assert_array_equal(columns["next_state"][inside], columns["state"][inside + 1])
    assert (
        np.abs(columns["next_obs"][ends][..., :2]).max((1, 2, 3)).min() > 0
    )  # what the episode led to, not the next one's start


@BOTH
def test_runs_of_one_seed_are_the_same(config: BehaviorConfig) -> None:
    one, same, other = (started(config, seed) for seed in (3, 3, 4))
    for run in (one, same, other):
        run.advance()
        run.advance()
    for name, column in held(one).items():
        np.testing.assert_array_equal(held(same)[name], column)
    assert one.actor.content_hash() == same.actor.content_hash() != other.actor.content_hash()
    assert (held(other)["actions"] == held(one)["actions"]).mean() < 0.1  # some are clipped
    assert not (held(other)["obs"] == held(one)["obs"])[0, ..., 2:14].any()


@BOTH
def test_nothing_but_state_and_memory_goes_into_the_next_segment(config: BehaviorConfig, tmp_path: Path) -> None:
    first, second = started(config), started(config)
    first.advance()
    first.advance()
    assert first.memory is not None
    assert second.memory is not None
    first.memory.save(tmp_path / "memory")
    checkpoints.save(tmp_path / "state", first.state())
    first.advance()
    second.memory.restore(tmp_path / "memory", 60)
    second.restore(checkpoints.load(tmp_path / "state"))
    assert (second.segments, second.env_steps) == (2, 60 * 32)
    second.advance()
    assert second.actor.content_hash() == first.actor.content_hash()
    assert second.learner.updates == first.learner.updates > 0
    for name, column in held(first).items():
        np.testing.assert_array_equal(held(second)[name], column)


# What reaches the learners


def test_td3_explores_uniformly_first_and_then_around_its_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up of 20 steps of 32 worlds: that many uniform actions, and no update."""
    config = td3_recipe(segment_steps=40, td3={"warmup_steps": 640, "exploration_noise": 0.2})
    monkeypatch.setattr(TD3, "update", lambda *_: None)  # the policy stays what it is
    run = runs.start(CN, config, seed=0)
    run.advance()
    columns = held(run)
    uniform = columns["actions"][:20]
    np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.5, 0.9]), [-0.8, 0, 0.8], atol=0.05)
    obs = columns["obs"][20:].reshape(-1, 3, 18)
    mean = run.actor.act(obs, np.random.default_rng(0)).reshape(20, 32, 3, 2)
    free = np.abs(mean) < 0.3
    noise = (columns["actions"][20:] - mean)[free]
    assert noise.std() == pytest.approx(0.2, rel=0.1)
    assert np.abs(columns["actions"]).max() <= 1


@pytest.mark.parametrize(("per_step", "updates"), [(1.0, 60), (0.3, 18), (2.5, 150)])
def test_td3_updates_as_often_as_asked(per_step: float, updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two segments of 40 steps, the first 20 of which warm up; what is due runs on from segment to segment."""
    config = td3_recipe(segment_steps=40, td3={"warmup_steps": 640, "updates_per_step": per_step})
    calls = []
    monkeypatch.setattr(TD3, "update", lambda _, batch: calls.append(batch))
    run = runs.start(CN, config, seed=0)
    run.advance()
    run.advance()
    assert abs(len(calls) - updates) <= 1  # tenths do not add up exactly
    assert {tuple(batch.actions.shape) for batch in calls} == {(3, 128, 2)}


def test_ppo_learns_from_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions as they were drawn, the team's reward, and ends where the worlds restart."""
    rounds: list[Steps] = []
    forgotten: list[int] = []
    monkeypatch.setattr(PPO, "update", lambda _, steps: rounds.append(steps))
    monkeypatch.setattr(PPO, "forget_worlds", lambda _: forgotten.append(len(rounds)))
    config = ppo_recipe(segment_steps=30)
    run = started(config)
    run.advance()
    run.advance()
    assert (len(rounds), forgotten) == (6, [0, 3])
    columns = held(run)

    def seen(name: str) -> np.ndarray:
        return torch.cat([getattr(steps, name) for steps in rounds]).numpy()

    np.testing.assert_array_equal(seen("obs").swapaxes(1, 2), columns["obs"])
    np.testing.assert_array_equal(seen("state"), columns["state"])
    np.testing.assert_array_equal(seen("next_state"), columns["next_state"])
    np.testing.assert_allclose(seen("rewards"), columns["rewards"].mean(2), rtol=1e-6)
    np.testing.assert_array_equal(seen("ended"), columns["truncated"])
    assert not seen("terminated").any()
    raw = seen("raw_actions").swapaxes(1, 2)
    assert np.abs(raw).max() > 1
    np.testing.assert_array_equal(raw.clip(-1, 1), columns["actions"])


# Recipes that no run can have


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ppo": PPO_SETTINGS.model_dump()}, "exactly one of the tables td3 and ppo"),
        ({"td3": None}, "exactly one of the tables td3 and ppo"),
        (
            {"td3": None, "ppo": PPO_SETTINGS.model_dump(), "segment_steps": 60},
            r"segment_steps = 60 must be a multiple of ppo\.rollout_steps = 25",
        ),
        ({"levels": {"medium": 5.0, "expert": 5.0}}, "expert = 5.0 must be above medium = 5.0"),
    ],
)
def test_recipes_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BehaviorConfig.model_validate(td3_recipe().model_dump() | changes)
