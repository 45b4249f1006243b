"""Data of several teams: whose episodes they are is found out, and the policy plays as the best of them."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import numpy as np
import pytest
import torch

from om2p_data.errors import UserError
from om2p_train import behavior_teams, config, run_folder, trainer
from om2p_train.actors import DeterministicActor
from om2p_train.batches import Transitions, by_learner
from om2p_train.interruption import Interrupted
from om2p_train.loggers import Loggers
from om2p_train.networks import NetworkConfig
from om2p_train.policy import load_policy
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams
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


def told_apart(dataset, teams):
    return behavior_teams.tell_apart(Transitions(dataset), teams)


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
    found = told_apart(dataset, teams)
    assert purity(found.labels.numpy(), played) == 1.0
    assert set(played[found.labels == found.best]) == {1}
    assert found.returns[found.best] == STEPS
    assert float(found.shares.sum()) == pytest.approx(1.0)


def test_one_team_too_few_leaves_two_mixed():
    dataset, played = several_teams()
    assert purity(told_apart(dataset, 2).labels.numpy(), played) == pytest.approx(2 / 3)


@pytest.mark.parametrize("discrete", [False, True])
def test_how_many_there_are_is_found_out(discrete):
    dataset, played = several_teams(discrete=discrete)
    found = told_apart(dataset, "auto")
    assert found.number == 3
    assert purity(found.labels.numpy(), played) == 1.0
    assert found.labels.equal(told_apart(dataset, "auto").labels)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_one_team_is_one(noise):
    """Its agents see different places in different episodes, and what they do there is hard to fit or noisy."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (400, 1, 2, 1)) + rng.uniform(-0.1, 0.1, (400, STEPS + 1, 2, 1))
    actions = 0.6 * np.sin(9.0 * obs[:, :-1]) + noise * rng.standard_normal((400, STEPS, 2, 1))
    rewards = rng.standard_normal((400, STEPS, 2))
    found = told_apart(toy_dataset(obs, actions.clip(-1, 1), rewards, terminal=True, length=STEPS), "auto")
    assert (found.number, found.best, found.labels.max()) == (1, 0, 0)
    why = found.why
    assert why.startswith("2 would differ too little (by a factor of ")
    assert found.words() == f"behaviour teams: the data are taken as one team's; {why}"
    assert found.facts()["why_no_more"] == why


def test_few_episodes_of_one_team_are_no_teams_that_networks_remember():
    """Forty components to remember an episode by, and next to nothing to learn from them."""
    rng = np.random.default_rng(0)
    obs, actions = rng.standard_normal((60, STEPS + 1, 2, 40)), rng.uniform(-1, 1, (60, STEPS, 2, 2))
    data = toy_dataset(obs, actions, np.zeros((60, STEPS, 2)), terminal=True, length=STEPS)
    assert told_apart(data, "auto").number == 1
    few = toy_dataset(obs[:19], actions[:19], np.zeros((19, STEPS, 2)), terminal=True, length=STEPS)
    assert told_apart(few, "auto").why == "there are too few episodes for 2"


def test_what_changes_with_every_episode_is_no_team():
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (400, STEPS + 1, 2, 1))
    goals = np.repeat(rng.uniform(-1, 1, (400, 1, 2, 1)), STEPS, 1)
    data = toy_dataset(obs, goals, np.zeros((400, STEPS, 2)), terminal=True, length=STEPS)
    found = told_apart(data, "auto")
    assert (found.number, found.why) == (1, "more than 7 would differ, so something changes with every episode")


@pytest.mark.parametrize("starts", [1, 4])
def test_worlds_that_always_begin_alike_hide_no_team(starts):
    """One team after the other, as they are collected."""
    rng = np.random.default_rng(0)
    team = np.arange(400) >= 300
    obs = np.repeat(rng.integers(starts, size=(400, 1, 2, 1)), 2, 1)
    data = Transitions(toy_dataset(obs, np.zeros((400, 1, 2, 1)), np.zeros((400, 1, 2)), terminal=True))
    every = torch.arange(400)
    assert behavior_teams._begins_alike(data, torch.from_numpy(team).long(), every)
    assert starts == 1 or not behavior_teams._begins_alike(data, torch.from_numpy(obs[:, 0, 0, 0] > 1).long(), every)


def test_two_ways_of_one_team_are_seen_beside_another_team():
    """Where a team begins decides which way it takes; most of the data are of another team, which begins anywhere."""
    rng = np.random.default_rng(0)
    begins = rng.uniform(-1, 1, 400)
    two, three = np.arange(400) >= 320, np.where(np.arange(400) >= 320, 1 + (begins > 0), 0)
    obs = np.broadcast_to(begins[:, None, None, None], (400, 2, 2, 1))
    data = Transitions(toy_dataset(obs, np.zeros((400, 1, 2, 1)), np.zeros((400, 1, 2)), terminal=True))
    every = torch.arange(400)
    assert behavior_teams._begins_alike(data, torch.from_numpy(two).long(), every)
    assert not behavior_teams._begins_alike(data, torch.from_numpy(three), every)


@pytest.mark.parametrize(("ones", "others"), [(10, 10), (16, 16), (10, 90), (400, 400)])
def test_few_episodes_are_enough_to_see_that_beginnings_differ(ones, others):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [ones, others])
    for apart, alike in ((3.0, False), (0.0, True)):
        begins = rng.standard_normal((len(labels), 1, 2, 2)) + apart * labels[:, None, None, None]
        obs, count = np.repeat(begins, 2, 1), len(labels)
        data = Transitions(toy_dataset(obs, np.zeros((count, 1, 2, 1)), np.zeros((count, 1, 2)), terminal=True))
        every = torch.arange(count)
        assert behavior_teams._begins_alike(data, torch.from_numpy(labels).long(), every) is alike


@pytest.mark.parametrize(("of_the_world", "teams"), [(True, 1), (False, 2)])
def test_where_the_world_makes_the_difference_there_are_no_teams(of_the_world, teams):
    """Nobody has acted yet where an episode begins: what already differs there is not who plays."""
    rng = np.random.default_rng(0)
    who = rng.choice([-1.0, 1.0], EPISODES)[:, None, None, None]
    obs = rng.uniform(-1, 1, (EPISODES, STEPS + 1, 2, 1))
    actions = 0.8 * np.sign(obs[:, :-1]) * who
    if of_the_world:
        obs[:, :1] = who  # and later nothing shows it any more
    data = toy_dataset(obs, actions, np.zeros((EPISODES, STEPS, 2)), terminal=True, length=STEPS)
    assert told_apart(data, "auto").number == teams


def test_a_lucky_episode_makes_no_team():
    """Of 400 episodes two are the best by far, half a hundredth; ten others are better on average, maybe by luck."""
    rewards = np.ones((400, 1, 1))
    rewards[:2] = 100.0
    rewards[2:12, 0, 0] = [8.0, -4.0] * 5
    rewards[200:] = 1.5
    data = Transitions(toy_dataset(np.zeros((400, 2, 1, 1)), np.zeros((400, 1, 1, 1)), rewards, terminal=True))
    labels = torch.zeros(400, dtype=torch.long)
    labels[:2], labels[2:12], labels[200:] = 1, 2, 4
    found = behavior_teams.described(data, 5, labels)
    shares = [188 / 400, 2 / 400, 10 / 400, 0.0, 0.5]
    assert found.facts() == {
        "shares": pytest.approx(shares),
        "returns": pytest.approx([1.0, 100.0, 2.0, None, 1.5]),
        "standard_errors": pytest.approx([0.0, 0.0, 2.0, None, 0.0]),
        "plays": 4,
    }
    assert found.words() == (
        "behaviour teams told apart, return ± standard error (share of the data): 1.0 ± 0.0 (47.0%), "
        "100.0 ± 0.0 (0.5%), 2.0 ± 2.0 (2.5%), 1.5 ± 0.0 (50.0%); plays as that of 1.5"
    )
    few = behavior_teams.described(data, 400, torch.arange(400))
    assert few.best == 0, "of teams with an episode each none is known to be better"


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
    real = behavior_teams._Mixture._judge

    def judge(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(behavior_teams._Mixture, "_judge", judge)
        with pytest.raises(Interrupted, match="stopped before the run began"):
            train(tmp_path / "run", "data.behavior_teams=2")
    assert not (tmp_path / "run").exists()
    assert results(train(tmp_path / "run", "data.behavior_teams=2", resume=True)) == whole


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_nobody_else_trains_in_the_folder_meanwhile(tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "datasets")
    asked = []
    real = behavior_teams._Mixture._judge

    def judge(self, *arguments):
        with pytest.raises(UserError, match="another process is training in"), run_folder.claimed(tmp_path / "run"):
            pass
        asked.append(True)
        return real(self, *arguments)

    monkeypatch.setattr(behavior_teams._Mixture, "_judge", judge)
    folder = run(data, tmp_path / "run", "data.behavior_teams=2", algo="bc", loggers=Loggers(tensorboard=False))
    assert asked
    timing = run_folder.read_facts(folder)["timing"]
    assert timing["telling_apart_seconds"] > 0
    assert timing["updates_per_second"] > 30 / (timing["training_seconds"] + timing["telling_apart_seconds"])


@pytest.mark.parametrize(("rewards", "plays"), [((0.0, 1.0, 0.5), 1), ((1.0, 0.0, 0.5), 0)])
def test_an_interrupted_run_goes_on_with_the_teams_that_it_found(rewards, plays, tmp_path, monkeypatch):
    dataset, _ = several_teams(rewards)
    recipe = config.load(
        "bc",
        "toy",
        None,
        settings=[
            "data.behavior_teams=auto",
            "network.hidden=[8]",
            "optimizer.batch_size=8",
            "run.updates=20",
            "run.checkpoint_every=10",
        ],
    )
    once = Loggers(tensorboard=False)
    trainer.train(dataset, recipe, [0], tmp_path / "whole", loggers=once)
    real = trainer.run_folder.write_checkpoint

    def write(folder, state):
        real(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.run_folder, "write_checkpoint", write)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(dataset, recipe, [0], tmp_path / "run", loggers=once)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "tell_apart", None)
        assert trainer.train(dataset, recipe, [0], tmp_path / "run", resume=True, loggers=once)
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    whole, found = (run_folder.read_facts(tmp_path / name)["behavior_teams"] for name in ("whole", "run"))
    assert found == whole
    assert (len(found["shares"]), found["plays"]) == (3, plays)
    assert found["why_no_more"]


def test_batches_say_who_played_and_are_half_of_the_best():
    dataset, played = several_teams()
    data = Transitions(dataset)
    labels = torch.from_numpy(played)
    data.mark(labels, 4, 1)
    batch = data.sample(SeedStreams([0, 1], SAMPLING), 3000)
    assert batch.obs.shape == batch.next_obs.shape == (4, 3000, 1 + 4)
    assert batch.obs[..., 1:].equal(batch.next_obs[..., 1:])
    for seed in range(2):
        who = batch.obs[2 * seed, :, 1:].argmax(-1)
        assert who.equal(labels[batch.rows[seed] // STEPS])
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
        ("omar", [], False),
    ],
)
def test_policies_play_as_the_best_team(name, settings, discrete):
    """Both agents go the other way: each alone would do it in one case of three, and so in the mean go nowhere."""
    dataset, played = several_teams(discrete=discrete)
    wide = ["network.hidden=[32,32]", "optimizer.batch_size=128", "optimizer.learning_rate=3e-3", *settings]
    algorithm, learner = make_learner(name, dataset, [0], "data.behavior_teams=3", *wide, updates=600)
    learner._data.mark(torch.from_numpy(played), 3, 1)
    algorithm.policy.play_as(1)
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
    found = facts["behavior_teams"]
    assert sum(found["shares"]) == pytest.approx(1.0)
    for seed in facts["seeds"]:
        policy = load_policy(folder / "policies" / f"seed{seed}.safetensors")
        assert policy.actor.context.argmax(-1).flatten().tolist() == [found["plays"]] * 3
        assert policy.actor.team.obs_dim == policy.spec.obs_dim
        obs = {agent: np.zeros((4, policy.spec.obs_dim), np.float32) for agent in policy.agents}
        played = policy.act(obs)
        policy.actor.play_as((found["plays"] + 1) % 3)
        assert any(not np.allclose(played[agent], other) for agent, other in policy.act(obs).items())


def test_files_of_before_have_no_context():
    team = Team(5, (2, 2), discrete=False)
    old = {key: value for key, value in team.to_json().items() if key != "context"}
    assert Team.from_json(old) == team
    wide = Team(5, (2, 2), discrete=False, context=3)
    assert Team.from_json(wide.to_json()) == wide
    assert wide.input_dim == 8


def test_where_nobody_asks_there_is_no_context():
    dataset, _ = several_teams()
    spec = dataset.environment.spec
    assert (Team.of(spec, 2).input_dim, Team.of(spec, 2).obs_dim, Team.of(spec).input_dim) == (3, 1, 1)
    config = NetworkConfig.model_validate({"hidden": (8,), "activation": "gelu", "critic_layer_norm": True})
    actor = DeterministicActor(SeedStreams([0], INITIALISATION), Team.of(spec), config)
    assert "context" not in actor.state_dict()
