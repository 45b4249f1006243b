"""Whole runs at a small scale: what a run leaves behind, that it repeats itself, and that its files are enough."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from safetensors.torch import load_file

from om2p_data import inspect
from om2p_data.envs import make, parallel_env
from om2p_data.errors import UserError
from om2p_data.rollout import team_returns
from om2p_train import config, load_policy, results, trainer
from om2p_train.evaluation import Evaluator
from om2p_train.loggers import Loggers

from .runs import make_dataset
from .runs import run as train_small


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_small(data, tmp_path_factory.mktemp("runs") / "om2p", loggers=Loggers(tensorboard=True))


def test_a_run_folder_holds_the_facts(run, data):
    facts = json.loads((run / "run.json").read_text())
    assert facts["finished"] is True
    assert facts["dataset_hash"] == data.metadata["content_hash"]
    assert facts["seeds"] == [0, 1]
    assert facts["recipe"]["options"]["time_pair"] == "ordered"
    with (run / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 8
    assert {row["update"] for row in rows} == {"10", "20", "30"}
    with (run / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    assert len(metrics) == 3 * 2 * 3
    assert all(np.isfinite(float(row["critic_loss"])) for row in metrics)
    assert list((run / "tensorboard").iterdir())
    assert not list(run.rglob("*.partial"))


def test_the_resolved_recipe_runs_the_same_again(run, data, tmp_path):
    recipe = config.load(run / "recipe.toml", data.task.name, None)
    again = tmp_path / "again"
    trainer.train(data, recipe, [0, 1], again, progress=False)
    assert (again / "evaluations.csv").read_text() == (run / "evaluations.csv").read_text()
    assert (again / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_evaluation_does_not_touch_training(run, data, tmp_path):
    other = train_small(data, tmp_path / "other", "run.evaluate_every=30", "run.evaluation_episodes=3")
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (run, other))
    for name, value in first.items():
        assert np.array_equal(value.numpy(), second[name].numpy()), name


def test_a_seed_in_a_stack_scores_like_the_seed_alone(run, data, tmp_path):
    alone = train_small(data, tmp_path / "alone", seeds=[1])
    stacked, single = (load_policy(folder / "policies" / "seed1.safetensors") for folder in (run, alone))
    rng = np.random.default_rng(0)
    obs = {agent: rng.standard_normal((50, 18)).astype(np.float32) for agent in stacked.agents}
    together, apart = stacked.act(obs), single.act(obs)
    for agent in stacked.agents:
        np.testing.assert_allclose(together[agent], apart[agent], atol=1e-4)


def test_a_policy_file_scores_what_the_run_reports(run, data):
    """The first seed's file in the same worlds with the same noise: the returns in evaluations.csv."""
    with (run / "evaluations.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "0"]
    last = [float(row["return"]) for row in rows if row["update"] == rows[-1]["update"]]
    team = load_policy(run / "policies" / "seed0.safetensors")
    played = Evaluator(team.actor, data.environment, [0], len(last)).returns(world_seed=0)[0]
    np.testing.assert_allclose(played, last, rtol=1e-4)


def test_a_policy_file_scores_the_same_in_a_pettingzoo_loop(run):
    """The file alone, in the plain loop, against the batched evaluation of the same weights: equal in distribution."""
    team = load_policy(run / "policies" / "seed0.safetensors")
    env = parallel_env("cn")
    returns = []
    for episode in range(200):
        obs, _ = env.reset(seed=episode)
        total = 0.0
        while env.agents:
            obs, rewards, *_ = env.step(team.act(obs))
            total += np.mean(list(rewards.values()))
        returns.append(total)

    class Batched:
        def act(self, obs, rng):
            by_agent = dict(zip(team.agents, obs.swapaxes(0, 1), strict=True))
            actions = team.act(by_agent)
            return np.stack([actions[agent] for agent in team.agents], 1)

    batched = team_returns(Batched(), make("cn", 2000, threads=1), seed=1)
    error = np.hypot(np.std(returns) / np.sqrt(200), batched.std() / np.sqrt(2000))
    assert abs(np.mean(returns) - batched.mean()) < 4 * error


def test_a_policy_says_what_is_wrong_with_its_input(run, tmp_path):
    team = load_policy(run / "policies" / "seed0.safetensors")
    with pytest.raises(UserError, match="agent_0"):
        team.act({})
    with pytest.raises(UserError, match=r"shape \(3,\), not \(18,\)"):
        team.act(dict.fromkeys(team.agents, np.zeros(3)))
    with pytest.raises(UserError, match="does not exist"):
        load_policy(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot read"):
        load_policy(tmp_path / "broken.safetensors")


def test_a_run_is_not_overwritten_by_accident(run, data):
    with pytest.raises(UserError, match="--overwrite"):
        train_small(data, run)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_must_be_different_numbers(data, tmp_path, seeds):
    with pytest.raises(UserError, match="different numbers"):
        train_small(data, tmp_path / "run", seeds=seeds)
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_not_reported(run, tmp_path):
    facts = json.loads((run / "run.json").read_text()) | {"finished": False}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="has not finished"):
        results.read(tmp_path)


def test_an_episode_becomes_a_gif(run, tmp_path):
    from PIL import Image

    team = load_policy(run / "policies" / "seed0.safetensors")
    frames, team_return = inspect.play("cn", team.act, seed=3)
    assert len(frames) == 26
    assert np.isfinite(team_return)
    inspect.save_gif(frames, tmp_path / "episode.gif")
    with Image.open(tmp_path / "episode.gif") as picture:
        shown = []
        for index in range(picture.n_frames):  # equal pictures in a row are one that is shown longer
            picture.seek(index)
            shown.append(picture.info["duration"])
        assert sum(shown) == 26 * min(shown)
        assert picture.size == frames[0].shape[1::-1]


def test_a_diverged_run_ends_with_one_line_and_without_a_result(data, tmp_path):
    with pytest.raises(UserError, match=r"not finite.*diverged"):
        train_small(data, tmp_path / "run", "optimizer.learning_rate=1e30")
    with pytest.raises(UserError, match="has not finished"):
        results.read(tmp_path / "run")


def test_overwriting_a_run_keeps_what_is_not_the_runs(data, tmp_path):
    folder = train_small(data, tmp_path / "run", "run.updates=10", seeds=[0])
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        train_small(data, folder, "run.updates=10", seeds=[1], overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert results.read(folder).final.shape == (1,)
    (folder / "notes.txt").unlink()
    (folder / "run.json").unlink()  # what a start that was broken off leaves can be overwritten
    train_small(data, folder, "run.updates=10", seeds=[1, 2], overwrite=True)
    assert results.read(folder).final.shape == (2,)
