"""Evaluation anywhere: own tasks, and environments of other people made anew from their data sets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from om2p_data import collection
from om2p_data import dataset as datasets
from om2p_data.behavior.policy import UniformPolicy
from om2p_data.dataset import Dataset
from om2p_data.envs import find, make
from om2p_data.errors import UserError
from om2p_data.rollout import team_returns
from om2p_data.spec import EnvironmentCard
from om2p_train.actors import DeterministicActor, FlowActor, OneStep
from om2p_train.arena import UniformTeam, named, open_arena, random_return
from om2p_train.evaluation import Evaluator
from om2p_train.networks import NetworkConfig
from om2p_train.streams import INITIALISATION, SeedStreams
from om2p_train.team import Team

NETWORK = NetworkConfig.model_validate({"hidden": (8,), "activation": "relu", "critic_layer_norm": False})
GAMES = "tests.train.games"


@pytest.fixture
def collected(tmp_path) -> Any:
    def collect(factory: str, policy: str = "random", **options: Any) -> Dataset:
        id_ = f"om2p/{factory.lower()}/random-v0"
        collection.collect(id_, f"{GAMES}:{factory}", policy, transitions=60, root=tmp_path, progress=False, **options)
        return datasets.load(id_, tmp_path)

    return collect


def flow_team(card: EnvironmentCard, seeds: list[int]) -> FlowActor:
    return FlowActor(SeedStreams(seeds, INITIALISATION), Team.of(card.spec), NETWORK, OneStep.JUMP)


class Scripted:
    """Acts on what it sees: the best of `Ferry`, in [-1, 1]."""

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # Own bounds are [-3, 1], so the wished-for action 2 s - 1 lies at s.
        actions = np.zeros((len(obs), 2, 3), np.float32)
        actions[:, 0, :2], actions[:, 1] = obs[:, 0, :2], obs[:, 1, :3]
        return actions


class Chooses:
    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        best = np.stack([obs[:, 0, :2].argmax(-1), obs[:, 1, :3].argmax(-1)], 1)
        return np.eye(3, dtype=np.float32)[best]


def test_own_tasks_are_played_in_the_batched_worlds():
    card = named("cn")
    arena = open_arena(card, 7)
    expected = team_returns(UniformPolicy(find("cn")), make("cn", 7, threads=1), seed=5)
    np.testing.assert_array_equal(arena.returns(UniformTeam(card.spec), 5), expected)


def test_uniform_actions_score_what_was_published():
    assert random_return(named("cn")) == pytest.approx(159.6, abs=5.0)


def test_somebodys_environment_is_made_anew_and_played_with_its_own_actions(collected):
    """The policy that acts best gets all there is: nothing, where numbers miss by nothing."""
    data = collected("Ferry")
    returns = open_arena(data.environment, 5).returns(Scripted(), 0)
    np.testing.assert_allclose(returns, np.zeros(5), atol=1e-5)
    assert random_return(data.environment) == pytest.approx(data.episodes.team_returns.mean(), abs=0.8)


def test_choices_are_counted_as_the_environment_counts_them(collected):
    card = collected("discrete").environment
    arena = open_arena(card, 40)
    returns = arena.returns(Chooses(), 0)
    assert set(returns) == {5.0, 6.0}  # a point a step for each of them
    # A half and a third are right by chance.
    assert random_return(card) == pytest.approx(5.5 * (1 / 2 + 1 / 3) / 2, abs=0.6)


def test_uniform_teams_act_within_their_own_sizes():
    spec = dataclasses.replace(named("cn").spec, act_dims=(2, 5, 3), discrete=(True,) * 3)
    actions = UniformTeam(spec).act(np.zeros((4000, 3, 18)), np.random.default_rng(0))
    assert (actions.sum(-1) == 1).all()
    np.testing.assert_allclose(actions.mean(0)[0], [0.5, 0.5, 0, 0, 0], atol=0.03)
    np.testing.assert_allclose(actions.mean(0)[2], [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=0.03)


@pytest.mark.parametrize("factory", ["Ferry", "discrete"])
def test_episodes_are_a_function_of_the_seed_and_many_are_played_in_rounds(collected, factory):
    card = collected(factory).environment
    evaluator = Evaluator(flow_team(card, [0, 3]), card, [0, 3], 40)
    ended: list[int] = []
    first = evaluator.returns(1, ended.append)
    assert first.shape == (2, 40)
    assert sum(ended) == 2 * 48  # three rounds of 16 episodes a seed
    np.testing.assert_array_equal(evaluator.returns(1), first)
    assert not np.array_equal(evaluator.returns(2), first)
    # Every round has starts and noise of its own.
    assert len({*first.ravel()}) == first.size or factory == "discrete"


def test_a_seed_plays_the_same_alone_as_beside_others(collected):
    """Each team sees its own copies: the teams differ, and the first 16 episodes of a seed are the same seed's."""
    card = collected("Ferry").environment
    team = Team.of(card.spec)
    both = DeterministicActor(SeedStreams([0, 3], INITIALISATION), team, NETWORK)
    alone = DeterministicActor(SeedStreams([0], INITIALISATION), team, NETWORK)
    together = Evaluator(both, card, [0, 3], 8).returns(1)[0]
    # The copies' seeds are drawn in order, so those of the first seed are the same.
    np.testing.assert_allclose(Evaluator(alone, card, [0], 8).returns(1)[0], together, rtol=1e-5)


def test_the_card_of_a_policy_file_is_enough(collected):
    card = collected("Ferry").environment
    again = EnvironmentCard.from_json(card.to_json())
    assert again.spec == card.spec
    returns = [open_arena(each, 3).returns(UniformTeam(each.spec), 0) for each in (card, again)]
    np.testing.assert_array_equal(*returns)
    own = named("hc")
    assert EnvironmentCard.from_json(own.to_json()).task == own.task == find("hc")


def described(entry_point: Any, **kwargs: Any) -> EnvSpec:
    return EnvSpec(id="om2p/ferry-v0", entry_point=entry_point, kwargs=kwargs)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"^ferry cannot be played: its data do not say how to make it$"),
        (described("os:system", command="exit"), r"^ferry cannot be played: 'os:system' names no environment$"),
        (described(None), r"None names no environment$"),
        (described("om2p_data.errors:unknown", what="a"), r"om2p_data.errors:unknown is no Env of Gymnasium$"),
        (described("nowhere:Env"), r"^ferry cannot be played: importing nowhere:Env failed: ModuleNotFoundError"),
        (
            described("om2p_data.envs.adapters:FactoryTeam", factory="os:getpid"),
            r"^ferry cannot be played: 'os:getpid' names no environment$",
        ),
        (
            described("om2p_data.envs.adapters:FactoryTeam", factory="gone.away:env"),
            r"^ferry cannot be played: its factory gone\.away:env cannot be imported: ModuleNotFoundError",
        ),
        (described("om2p_data.envs.adapters:TeamEnv", name="cn"), r"agents \['bow', 'stern'\]$"),
        (
            described("om2p_data.envs.adapters:FactoryTeam", factory=f"{GAMES}:discrete"),
            r"^ferry has changed: its team is bow, stern with observations \(3, 4\) and actions \(2, 3\) now",
        ),
    ],
)
def test_what_cannot_be_played_is_said_in_one_line(collected, spec, message):
    card = dataclasses.replace(collected("Ferry").environment, env_spec=spec)
    with pytest.raises(UserError, match=message) as caught:
        Evaluator(flow_team(card, [0]), card, [0], 2)
    assert "\n" not in str(caught.value)


def test_an_environment_that_fails_is_said_in_one_line(collected):
    card = collected("Ferry").environment
    card = dataclasses.replace(
        card, env_spec=described("om2p_data.envs.adapters:FactoryTeam", factory=f"{GAMES}:broken")
    )
    with pytest.raises(UserError, match=r"^ferry: step\(\) failed: RuntimeError: sunk \(.*games\.py, line \d+\)$"):
        open_arena(card, 2).returns(UniformTeam(card.spec), 0)
