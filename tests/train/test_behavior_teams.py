"""Data of several teams: whose episodes they are is found out, and the policy plays as the best of them."""

from __future__ import annotations

import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from om2p_data.errors import UserError
from om2p_train import behavior_teams, run_folder
from om2p_train.actors import DeterministicActor
from om2p_train.batches import Transitions, by_learner
from om2p_train.interruption import Interrupted
from om2p_train.loggers import Loggers
from om2p_train.networks import NetworkConfig
from om2p_train.policy import load_policy
from om2p_train.streams import INITIALISATION, SAMPLING, TELLING_APART, SeedStreams
from om2p_train.team import Team

from .conftest import toy_dataset
from .learners import make_learner
from .runs import contents, make_dataset, results, run

EPISODES, STEPS = 90, 5


def several_teams(rewards=(0.0, 1.0, 0.5), *, discrete=False, unit=1.0):
    """2 agents of three teams that take turns, episode by episode.

    All of them look at the same numbers. The first team's agents both go where theirs points, the second's both go the
    other way, of the third one goes and the other stays: each agent alone does what an agent of another team does too.

    Returns:
        The data and who played each episode.
    """
    rng = np.random.default_rng(0)
    played = np.arange(EPISODES) % 3
    obs = rng.uniform(-1, 1, (EPISODES, STEPS + 1, 2, 1))
    signs = np.array([[1, 1], [-1, -1], [1, 0]])[played][:, None, :, None]
    actions = 0.8 * np.sign(obs[:, :-1]) * signs
    if discrete:
        actions = np.eye(3)[np.sign(actions[..., 0]).astype(int) + 1]
    reward = np.broadcast_to(np.array(rewards)[played][:, None, None], (EPISODES, STEPS, 2))
    return toy_dataset(
        unit * (obs + 100.0 * (unit < 1)), actions, reward, terminal=True, length=STEPS, discrete=discrete
    ), played


def told_apart(dataset, teams, seeds=(0, 1)):
    data = Transitions(dataset)
    return data, behavior_teams.tell_apart(data, teams, SeedStreams(seeds, TELLING_APART))


def purity(labels, played):
    """Share of the episodes whose label belongs to their team: that which has most of the label's episodes."""
    return sum(np.bincount(played[labels == label]).max() for label in np.unique(labels)) / len(played)


@pytest.mark.parametrize(
    ("teams", "discrete", "unit"), [(4, False, 1.0), (5, True, 1.0), (4, False, 1e-3), (4, False, 1e4)]
)
def test_teams_are_told_apart_by_what_they_do_alone(teams, discrete, unit, monkeypatch):
    """In whatever units the observations are, far from zero or not; and judged in pieces."""
    monkeypatch.setattr(behavior_teams, "_AT_ONCE_ON_CPU", 10_000)
    dataset, played = several_teams(discrete=discrete, unit=unit)
    _, found = told_apart(dataset, teams)
    for labels, best, returns in zip(found.labels, found.best, found.returns, strict=True):
        assert purity(labels.numpy(), played) == 1.0
        assert set(played[labels == best]) == {1}
        assert returns[best] == STEPS
    torch.testing.assert_close(found.shares.sum(1), torch.ones(2, dtype=torch.float64))


def test_one_team_too_few_leaves_two_mixed():
    dataset, played = several_teams()
    _, found = told_apart(dataset, 2)
    for labels in found.labels.numpy():
        assert purity(labels, played) == pytest.approx(2 / 3)


def test_what_a_seed_finds_does_not_depend_on_its_neighbours():
    dataset, _ = several_teams()
    assert told_apart(dataset, 3, [7])[1].labels[0].equal(told_apart(dataset, 3, [2, 7])[1].labels[1])


def test_a_lucky_episode_makes_no_team():
    """Of 400 episodes two are the best by far, half a hundredth; ten others are better on average, maybe by luck."""
    rewards = np.ones((400, 1, 1))
    rewards[:2] = 100.0
    rewards[2:12, 0, 0] = [8.0, -4.0] * 5
    rewards[200:] = 1.5
    data = Transitions(toy_dataset(np.zeros((400, 2, 1, 1)), np.zeros((400, 1, 1, 1)), rewards, terminal=True))
    labels = torch.zeros(1, 400, dtype=torch.long)
    labels[0, :2], labels[0, 2:12], labels[0, 200:] = 1, 2, 4
    found = behavior_teams.described(data, 5, labels)
    shares = [188 / 400, 2 / 400, 10 / 400, 0.0, 0.5]
    assert found.facts() == [
        {
            "shares": pytest.approx(shares),
            "returns": pytest.approx([1.0, 100.0, 2.0, None, 1.5]),
            "standard_errors": pytest.approx([0.0, 0.0, 2.0, None, 0.0]),
            "plays": 4,
        }
    ]
    assert found.words() == [
        "behaviour teams told apart, return ± standard error (share of the data): 1.0 ± 0.0 (47.0%), "
        "100.0 ± 0.0 (0.5%), 2.0 ± 2.0 (2.5%), 1.5 ± 0.0 (50.0%); plays as that of 1.5"
    ]
    few = behavior_teams.described(data, 400, torch.arange(400)[None])
    assert few.best.tolist() == [0], "of teams with an episode each none is known to be better"


def test_more_teams_than_episodes_are_refused_before_anything_is_touched(tmp_path):
    data = make_dataset(tmp_path / "datasets")
    quiet = Loggers(tensorboard=False)
    folder = run(data, tmp_path / "run", algo="bc", loggers=quiet)
    before = contents(folder)
    with pytest.raises(UserError, match=r"data\.behavior_teams is 41 and om2p/.* has 40 episodes, .*: set it lower"):
        run(data, folder, "data.behavior_teams=41", algo="bc", loggers=quiet, overwrite=True)
    assert contents(folder) == before


def test_a_signal_while_teams_are_told_apart_ends_the_run_and_it_goes_on(tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "datasets")
    train = partial(run, data, algo="bc", loggers=Loggers(tensorboard=False))
    whole = results(train(tmp_path / "whole", "data.behavior_teams=2"))
    real = behavior_teams._Mixture.judge

    def judge(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(behavior_teams._Mixture, "judge", judge)
        with pytest.raises(Interrupted, match="stopped at update 0"):
            train(tmp_path / "run", "data.behavior_teams=2")
    assert results(train(tmp_path / "run", "data.behavior_teams=2", resume=True)) == whole


def test_batches_say_who_played_and_are_half_of_the_best():
    dataset, played = several_teams()
    data = Transitions(dataset)
    labels = torch.from_numpy(np.stack([played, (played + 1) % 3]))
    data.mark(labels, 4, torch.tensor([1, 1]))
    batch = data.sample(SeedStreams([0, 1], SAMPLING), 3000)
    assert batch.obs.shape == batch.next_obs.shape == (4, 3000, 1 + 4)
    assert batch.obs[..., 1:].equal(batch.next_obs[..., 1:])
    for seed in range(2):
        who = batch.obs[2 * seed, :, 1:].argmax(-1)
        assert who.equal(labels[seed][batch.rows[seed] // STEPS])
        assert who.equal(batch.obs[2 * seed + 1, :, 1:].argmax(-1))
        assert (who[:1500] == 1).all()
        assert (np.bincount(who[1500:], minlength=4)[:3] > 400).all()
        rows, counts = batch.rows[seed, :1500].unique(return_counts=True)
        assert len(rows) == 30 * STEPS, "all of the best team's transitions are seen"
        assert counts.max() < 40
    rows = torch.arange(6).expand(2, -1)
    assert data.seen(rows)[..., :1].equal(by_learner(data.obs[data.obs_index[rows]]))
    assert data.seen(rows, 1)[..., :1].equal(by_learner(data.obs[data.obs_index[rows] + 1]))


@pytest.mark.parametrize(
    ("name", "settings", "discrete"),
    [
        ("bc", [], False),
        ("bc", [], True),
        ("om2p", ["options.eta=0.01"], False),
        ("ma-fql", ["options.alpha=10"], False),
        ("ma-sfbc", ["options.behavior_share=0.7", "options.score_hidden=[32,32]"], False),
    ],
)
def test_policies_play_as_the_best_team(name, settings, discrete):
    """Both agents go the other way: each alone would do it in one case of three, and so in the mean go nowhere."""
    dataset, played = several_teams(discrete=discrete)
    wide = ["network.hidden=[32,32]", "optimizer.batch_size=128", "optimizer.learning_rate=3e-3", *settings]
    algorithm, learner = make_learner(name, dataset, [0], "data.behavior_teams=3", *wide, updates=600)
    best = torch.tensor([1])
    learner._data.mark(torch.from_numpy(played)[None], 3, best)
    algorithm.policy.play_as(best)
    for _ in range(600):
        learner.update()
    obs = torch.tensor([-0.7, -0.3, 0.3, 0.7]).repeat(50)[None, :, None].expand(2, -1, -1)
    eps = SeedStreams([0], SAMPLING).normal(2, 200, algorithm.policy.noise_dim)
    with torch.no_grad():
        actions = algorithm.policy.act(obs, eps)
    moves = actions.argmax(-1) - 1.0 if discrete else actions[..., 0]
    assert (moves * obs[..., 0] < 0).float().mean() > 0.8


def test_a_policy_file_plays_as_the_run_did(tmp_path):
    data = make_dataset(tmp_path / "datasets")
    folder = run(data, tmp_path / "run", "data.behavior_teams=3", algo="bc", loggers=Loggers(tensorboard=False))
    facts = run_folder.read_facts(folder)
    assert facts["finished"]
    assert [sum(fact["shares"]) for fact in facts["behavior_teams"]] == pytest.approx([1.0, 1.0])
    for seed, fact in enumerate(facts["behavior_teams"]):
        policy = load_policy(folder / "policies" / f"seed{seed}.safetensors")
        assert policy.actor.context.argmax(-1).flatten().tolist() == [fact["plays"]] * 3
        assert policy.actor.team.seen_dim == policy.spec.obs_dim
        obs = {agent: np.zeros((4, policy.spec.obs_dim), np.float32) for agent in policy.agents}
        played = policy.act(obs)
        policy.actor.play_as(torch.tensor([(fact["plays"] + 1) % 3]))
        assert any(not np.allclose(played[agent], other) for agent, other in policy.act(obs).items())


def test_files_of_before_have_no_context():
    team = Team(5, (2, 2), discrete=False)
    old = {key: value for key, value in team.to_json().items() if key != "context"}
    assert Team.from_json(old) == team
    wide = Team(5, (2, 2), discrete=False, context=3)
    assert Team.from_json(wide.to_json()) == wide
    assert wide.seen_dim == 2


def test_where_nobody_asks_there_is_no_context():
    dataset, _ = several_teams()
    spec = dataset.environment.spec
    assert (Team.of(spec, 2).obs_dim, Team.of(spec, 2).seen_dim, Team.of(spec).obs_dim) == (3, 1, 1)
    config = NetworkConfig.model_validate({"hidden": (8,), "activation": "gelu", "critic_layer_norm": True})
    actor = DeterministicActor(SeedStreams([0], INITIALISATION), Team.of(spec), config)
    assert "context" not in actor.state_dict()
