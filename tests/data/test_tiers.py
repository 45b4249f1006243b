"""The five tiers of Cooperative Navigation from a recipe that trains in seconds."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch

from om2p_data import dataset, generation, tiers
from om2p_data.behavior import training
from om2p_data.behavior.config import EXPERT, MEDIUM
from om2p_data.behavior.replay import Replay
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs import make
from om2p_data.envs.registry import find
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.recipe import merge
from om2p_data.tiers import Collected, DataRecipe, Tier

from .conftest import TINY
from .test_recording import assert_equals_reference, cut_step_by_step

pytestmark = pytest.mark.usefixtures("one_thread")
CN = find("cn")
Collect = Callable[..., Collected]


@pytest.fixture
def collect(home: Path, tiny: DataRecipe) -> Collect:
    del home  # sets OM2P_HOME
    return functools.partial(tiers.collect, CN, config=tiny, progress=False)


def milestones(tiny: DataRecipe) -> dict[str, training.Milestone]:
    return {level: training.obtain(CN, level, tiny.behavior, seed=0, progress=False) for level in (MEDIUM, EXPERT)}


def residual(milestone: training.Milestone, episodes: Episodes) -> float:
    """Root mean square of what an actor does not explain of the actions; clipped ones left out."""
    obs = torch.from_numpy(episodes.obs[episodes.obs_index]).transpose(0, 1)
    with torch.no_grad():
        mean = milestone.actor(obs).transpose(0, 1).numpy()
    free = (np.abs(mean) < 0.6) & (np.abs(episodes.actions) < 1)
    return float(np.sqrt(np.mean((episodes.actions - mean)[free] ** 2)))


def assert_policies_fit(collected: Collected) -> None:
    """Every policy's entry says what the episodes that point at it say."""
    episodes = collected.episodes
    assert set(episodes.policy) == set(range(len(collected.policies)))
    for index, policy in enumerate(collected.policies):
        returns = episodes.team_returns[episodes.policy == index]
        assert policy.episodes == len(returns)
        assert (policy.return_mean, policy.return_std) == pytest.approx((returns.mean(), returns.std()))
    episodes.check()


# What the tiers hold


def test_random(collect: Collect) -> None:
    found = collect(Tier.RANDOM, transitions=20_001)
    assert found.episodes.lengths.tolist() == [25] * 801
    assert_policies_fit(found)
    assert found.teams == []
    assert found.policies == [
        BehaviorPolicy("random", "uniform", 0, 0, "", found.policies[0].return_mean, found.policies[0].return_std, 801)
    ]
    quantiles = np.quantile(found.episodes.actions, [0.0, 0.1, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(quantiles, [-1, -0.8, 0, 0.8, 1], atol=0.02)
    error = found.policies[0].return_std / np.sqrt(801)
    assert found.policies[0].return_mean == pytest.approx(159.6, abs=4 * error)


@pytest.mark.parametrize(("tier", "level"), [(Tier.MEDIUM, MEDIUM), (Tier.EXPERT, EXPERT)])
def test_a_level_is_its_policy_with_noise(tier: Tier, level: str, collect: Collect, tiny: DataRecipe) -> None:
    found = collect(tier, transitions=5_000)
    assert found.episodes.lengths.tolist() == [25] * 200
    assert_policies_fit(found)
    (policy,), kept = found.policies, milestones(tiny)
    card = kept[level].card
    assert (policy.name, policy.algorithm, policy.seed) == (level, "matd3", 0)
    assert (policy.step, policy.hash) == (card["updates"], card["hash"])
    (team,) = found.teams
    assert (team.level, team.card) == (level, card)
    assert team.origin == str(training.run_folder(CN, tiny.behavior, seed=0))
    assert residual(kept[level], found.episodes) == pytest.approx(0.1, rel=0.1)
    assert residual(kept[MEDIUM if level == EXPERT else EXPERT], found.episodes) > 0.2
    error = np.hypot(policy.return_std / np.sqrt(200), card["return_std"] / np.sqrt(card["episodes"]))
    assert policy.return_mean == pytest.approx(card["return_mean"], abs=4 * error)


@pytest.mark.parametrize(
    ("share", "medium", "expert"),
    [(None, 36, 4), (0.1, 36, 4), (0.5, 20, 20), (0.37, 26, 15), (0.0, 40, 0), (1.0, 0, 40)],
)
def test_mix_is_by_transitions(
    share: float | None, medium: int, expert: int, collect: Collect, tiny: DataRecipe
) -> None:
    found = collect(Tier.MEDIUM_EXPERT, transitions=1_000, expert_share=share)
    counts = {name: count for name, count in ((MEDIUM, medium), (EXPERT, expert)) if count}
    assert [policy.name for policy in found.policies] == [team.level for team in found.teams] == list(counts)
    assert np.bincount(found.episodes.policy).tolist() == list(counts.values())
    assert found.episodes.lengths.tolist() == [25] * (medium + expert)
    assert_policies_fit(found)
    kept = milestones(tiny)
    for index, policy in enumerate(found.policies):
        part = found.episodes.select(np.flatnonzero(found.episodes.policy == index))
        assert residual(kept[policy.name], part) == pytest.approx(0.1, rel=0.2)
        assert policy.hash == kept[policy.name].card["hash"]


def test_parts_of_a_mix_start_in_different_worlds(collect: Collect) -> None:
    episodes = collect(Tier.MEDIUM_EXPERT, transitions=2_000, expert_share=0.5).episodes
    starts = episodes.obs[episodes.episode_start].reshape(episodes.num_episodes, -1)
    assert len(np.unique(starts, axis=0)) == episodes.num_episodes == 80


def test_a_mix_without_expert_needs_no_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    config = tiers.load_recipe(CN, None, merge(TINY, {"behavior": {"levels": {"expert": 1e6}}}))
    found = tiers.collect(CN, Tier.MEDIUM_EXPERT, config, transitions=50, expert_share=0.0, progress=False)
    assert [policy.name for policy in found.policies] == [MEDIUM]


def test_a_mix_trains_once(tmp_path: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    calls, train = [], training.train

    def counting(*args: Any, **settings: Any) -> Path:
        calls.append(settings["until"])
        return train(*args, **settings)

    monkeypatch.setattr(training, "train", counting)
    tiers.collect(CN, Tier.MEDIUM_EXPERT, tiny, transitions=100, progress=False)
    assert calls == [EXPERT]


def test_medium_replay_is_all_that_was_collected_until_the_crossing(
    tmp_path: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded at the memory's door during a training that goes on to the expert level, and cut by the slow cut."""
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    rows: list[tuple[np.ndarray, ...]] = []
    add = Replay.add

    def recording(memory: Replay, *row: np.ndarray) -> None:
        rows.append(tuple(array.copy() for array in row))
        add(memory, *row)

    monkeypatch.setattr(Replay, "add", recording)
    training.train(CN, tiny.behavior, seed=0, progress=False)
    found = tiers.collect(CN, Tier.MEDIUM_REPLAY, tiny, progress=False)
    medium = milestones(tiny)[MEDIUM]
    crossing = medium.card["env_steps"] // tiny.behavior.num_envs
    assert 50 < crossing < len(rows)
    names = ["obs", "state", "actions", "rewards", "next_obs", "next_state", "terminated", "truncated"]
    records = {name: np.stack(column[:crossing]) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    assert_equals_reference(found.episodes, cut_step_by_step(records), with_state=False)
    assert found.episodes.num_transitions == crossing // 25 * 25 * tiny.behavior.num_envs
    assert_policies_fit(found)
    (policy,) = found.policies
    assert (policy.name, policy.step, policy.hash) == ("replay", medium.card["updates"], medium.card["hash"])


def test_fewer_of_medium_replay_are_spread_over_training(collect: Collect) -> None:
    everything = collect(Tier.MEDIUM_REPLAY).episodes
    number = {start.tobytes(): index for index, start in enumerate(everything.obs[everything.episode_start])}
    assert len(number) == everything.num_episodes > 100
    few = collect(Tier.MEDIUM_REPLAY, transitions=1_001)
    assert_policies_fit(few)
    assert few.episodes.num_episodes == 41
    chosen = np.array([number[start.tobytes()] for start in few.episodes.obs[few.episodes.episode_start]])
    steps = np.diff(chosen)
    assert (chosen[0], chosen[-1]) == (0, everything.num_episodes - 1)
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1
    for index in (0, 20, 40):  # taken whole
        np.testing.assert_array_equal(
            few.episodes.select([index]).actions, everything.select([int(chosen[index])]).actions
        )
    exactly = collect(Tier.MEDIUM_REPLAY, transitions=everything.num_transitions)
    assert exactly.episodes.content_hash() == everything.content_hash()


def test_more_than_all_of_medium_replay(collect: Collect) -> None:
    count = collect(Tier.MEDIUM_REPLAY).episodes.num_transitions
    with pytest.raises(UserError, match=f"holds {count} transitions, fewer than the {count + 1} asked for: leave"):
        collect(Tier.MEDIUM_REPLAY, transitions=count + 1)


def test_the_default_number_of_transitions(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiers.DEFAULT_TRANSITIONS == 1_000_000
    monkeypatch.setattr(tiers, "DEFAULT_TRANSITIONS", 310)
    assert collect(Tier.RANDOM).episodes.num_transitions == 325
    assert collect(Tier.MEDIUM_EXPERT, expert_share=0.5).episodes.num_transitions == 350  # 155 is 7 episodes, twice


def test_a_task_has_its_own_share(tiny: DataRecipe, home: Path) -> None:
    del home
    task = dataclasses.replace(CN, expert_share=0.3)
    found = tiers.collect(task, Tier.MEDIUM_EXPERT, tiny, transitions=1_000, progress=False)
    assert np.bincount(found.episodes.policy).tolist() == [28, 12]


# Determinism


@pytest.mark.parametrize("tier", [Tier.RANDOM, Tier.MEDIUM_EXPERT])
def test_same_seed_same_data_on_one_and_two_threads(
    tier: Tier, home: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    del home
    many = tiny.model_copy(update={"collection": tiers.CollectionConfig(num_envs=2048)})  # enough for two threads

    def hash_of(threads: int) -> str:
        monkeypatch.setattr(tiers, "make", functools.partial(make, threads=threads))
        torch.set_num_threads(threads)
        share = 0.5 if tier is Tier.MEDIUM_EXPERT else None
        return tiers.collect(
            CN, tier, many, transitions=102_400, expert_share=share, progress=False
        ).episodes.content_hash()

    assert hash_of(1) == hash_of(2) == hash_of(1)


def test_another_seed_gives_other_data(collect: Collect) -> None:
    one, other = (collect(Tier.RANDOM, transitions=500, seed=seed).episodes for seed in (0, 1))
    assert one.content_hash() != other.content_hash()
    assert not np.isin(other.actions, one.actions).any()


def test_the_number_of_worlds_is_that_of_the_recipe_or_fewer(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def recording(name: str, num_envs: int) -> Any:
        made.append(num_envs)
        return make(name, num_envs)

    monkeypatch.setattr(tiers, "make", recording)
    collect(Tier.RANDOM, transitions=51)
    collect(Tier.RANDOM, transitions=5_000)
    assert made == [3, 16]


# Refusals


@pytest.mark.parametrize(
    ("tier", "settings", "message"),
    [
        (Tier.MEDIUM_EXPERT, {"expert_share": 1.01}, r"must lie in \[0, 1\], not 1.01"),
        (Tier.MEDIUM_EXPERT, {"expert_share": -0.1}, r"must lie in \[0, 1\], not -0.1"),
        (Tier.MEDIUM_EXPERT, {"expert_share": float("nan")}, r"must lie in \[0, 1\], not nan"),
        (Tier.MEDIUM, {"expert_share": 0.1}, "only makes sense for tier medium-expert, not for medium$"),
        (Tier.RANDOM, {"transitions": 0}, "transitions must be 1 or more, not 0"),
        (Tier.MEDIUM_REPLAY, {"transitions": -5}, "transitions must be 1 or more, not -5"),
    ],
)
def test_requests_that_make_no_sense_train_nothing(
    tier: Tier,
    settings: dict[str, Any],
    message: str,
    tiny: DataRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message):
        tiers.collect(CN, tier, tiny, progress=False, **settings)
    assert list(tmp_path.iterdir()) == []


def test_unknown_tiers_offer_the_nearest() -> None:
    assert Tier.parse("Medium-Expert") is Tier.MEDIUM_EXPERT
    with pytest.raises(UserError, match=r"unknown tier 'expart': did you mean 'expert'"):
        Tier.parse("expart")


# On the disk


@pytest.mark.parametrize("tier", Tier)
def test_stock_minari_loads_every_tier(
    tier: Tier, home: Path, tiny: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del home
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    made = generation.generate(CN, tier, tiny, transitions=500, seed=0, version=3, progress=False)
    assert made.dataset_id == f"om2p/cooperative-navigation/{tier.value}-v3"
    assert made.folder == tmp_path / made.dataset_id
    stock = minari.load_dataset(made.dataset_id)
    episodes = made.collected.episodes
    assert (stock.total_episodes, stock.total_steps) == (20, 500)
    for e, episode in enumerate(stock):
        assert episode.rewards.sum() == pytest.approx(episodes.team_returns[e], rel=1e-5)
        np.testing.assert_array_equal(episode.observations["agent_2"][-1], episodes.obs[e * 26 + 25, 2])
    assert len(list(stock.sample_episodes(3))) == 3

    loaded = dataset.load(made.dataset_id)
    again = tiers.collect(CN, tier, tiny, transitions=500, seed=0, progress=False)
    assert loaded.metadata["content_hash"] == loaded.episodes.content_hash() == again.episodes.content_hash()
    assert list(loaded.policies) == again.policies
    assert loaded.metadata["tier"] == tier.value
    collection = loaded.metadata["collection"]
    assert (collection["seed"], collection["transitions_requested"], collection["prey"]) == (0, 500, None)
    assert collection["expert_share_requested"] is None
    assert collection["recipe"] == tiny.model_dump(mode="json")
    assert collection["teams"] == {team.level: team.card for team in made.collected.teams}


def test_a_taken_id_is_found_out_before_anything_is_collected(
    tiny: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_random(**settings: Any) -> generation.Generated:
        return generation.generate(CN, Tier.RANDOM, tiny, transitions=50, root=tmp_path, progress=False, **settings)

    first = make_random(seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(tiers, "collect", lambda *_, **__: pytest.fail("collected for nothing"))
        with pytest.raises(UserError, match=r"random-v0 exists already .*random-v1$"):
            make_random(seed=1)
    second = make_random(seed=1, overwrite=True)
    assert second.folder == first.folder
    metadata = json.loads((second.folder / "data" / "metadata.json").read_text())
    assert metadata["content_hash"] == second.collected.episodes.content_hash()
    assert metadata["content_hash"] != first.collected.episodes.content_hash()
    assert metadata["collection"]["seed"] == 1
