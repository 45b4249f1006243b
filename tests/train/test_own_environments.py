"""Data sets of other people's environments, from collecting to a scored, drawn and exported team."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from om2p_data import collection
from om2p_data import dataset as datasets
from om2p_train import config, load_policy, reporting, results, scores, trainer
from om2p_train.export import Format, export
from om2p_train.recovery import film

from .games import Ferry

GAMES = "tests.train.games"
SETTINGS = [
    "network.hidden=[16]",
    "optimizer.batch_size=16",
    "run.updates=20",
    "run.evaluate_every=10",
    "run.evaluation_episodes=3",
    "run.log_every=10",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    found = {}
    for factory in ("Ferry", "discrete", "blind"):
        id_ = f"om2p/{factory.lower()}/random-v0"
        collection.collect(id_, f"{GAMES}:{factory}", transitions=60, root=root, progress=False)
        found[factory] = datasets.load(id_, root)
    return found


def run(data, folder: Path, algo: str) -> Path:
    recipe = config.load(algo, data.environment.name, None, settings=SETTINGS)
    trainer.train(data, recipe, [0, 1], folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        factory: run(data[factory], folder / factory, algo)
        for factory, algo in (("Ferry", "vgm2p"), ("discrete", "vgm2p"), ("blind", "bc"))
    }


def policy_of(folder: Path) -> Path:
    return folder / "policies" / "seed1.safetensors"


@pytest.mark.parametrize("factory", ["Ferry", "discrete", "blind"])
def test_a_run_scores_its_teams_in_somebodys_environment(runs, factory):
    folder = runs[factory]
    facts = json.loads((folder / "run.json").read_text())
    assert facts["finished"] is True
    assert np.isfinite(facts["random_return_mean"])
    with (folder / "evaluations.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 3
    text = reporting.text(results.gather([folder]))
    assert text.count("±") == 2  # a return and no normalised score; the title has the other


def test_without_an_environment_a_run_learns_and_says_what_it_lacks(data, tmp_path, capsys):
    card = dataclasses.replace(data["Ferry"].environment, env_spec=None)
    folder = run(dataclasses.replace(data["Ferry"], environment=card), tmp_path / "run", "bc")
    said = capsys.readouterr().err
    assert said == (
        "warning: ferry cannot be played: its data do not say how to make it; training goes on without returns\n"
    )
    found = results.gather([folder])
    assert np.isnan(found.runs[0].final).all()
    assert "nan" not in reporting.text(found)
    assert "nan" not in reporting.page.render("Ferry", found)
    names = {path.name for path in reporting.write(found, tmp_path / "report")}
    assert names == {"table.md", "table.tex", "results.csv", "runs.jsonl", "report.html"}  # nothing to draw
    assert load_policy(policy_of(folder)).agents == ("bow", "stern")


@pytest.mark.parametrize("factory", ["Ferry", "discrete"])
def test_a_policy_file_plays_in_a_plain_loop(runs, factory):
    """The game itself refuses actions outside its spaces: here choices count from 1, and numbers end at -3 and 1."""
    team = load_policy(policy_of(runs[factory]))
    env = Ferry(discrete=factory == "discrete")
    obs, _ = env.reset(seed=0)
    while env.agents:
        actions = team.act(obs)
        if factory == "discrete":
            assert all(type(action) is int for action in actions.values())
            actions = {agent: action + 1 for agent, action in actions.items()}
        obs, *_ = env.step(actions)


def test_fresh_episodes_are_the_same_for_all_and_written_one_by_one(runs, tmp_path):
    paths = [runs["Ferry"] / "policies" / f"seed{seed}.safetensors" for seed in (0, 1)]
    found = scores.evaluate([*paths, paths[0]], 40, 3, progress=False)
    assert len(found[0].returns) == 40
    np.testing.assert_array_equal(found[0].returns, found[2].returns)
    assert not np.array_equal(found[0].returns, found[1].returns)
    scores.write(found, tmp_path / "r.json", 3)
    assert json.loads((tmp_path / "r.json").read_text())[1]["returns"] == found[1].returns.tolist()
    assert found[0].standard_error == pytest.approx(np.std(found[0].returns, ddof=1) / np.sqrt(40))
    assert scores.table(found).splitlines()[-1].startswith("all ")


def test_somebodys_environment_is_drawn_where_it_draws_itself(runs):
    team = load_policy(policy_of(runs["discrete"]))
    frames, team_return = film(team.environment, team.act, seed=0)
    assert frames[0].shape == (40, 60, 3)
    assert len(frames) in (6, 7)
    assert 0 <= team_return <= 6
    blind = load_policy(policy_of(runs["blind"]))
    with pytest.raises(ValueError, match=r"^blind cannot be played: .*unexpected keyword argument 'render_mode'"):
        film(blind.environment, blind.act, seed=0)


PLAY = """
import json, sys
import numpy as np
sys.path.insert(0, {tests!r})
import games
{load}
about = json.loads(text)
assert "om2p_train" not in sys.modules
env, rng, total = games.Ferry(discrete=about["discrete"]), np.random.default_rng(0), 0.0
obs, _ = env.reset(seed=0)
while env.agents:
    padded = np.zeros((len(about["agents"]), 1, max(about["obs_dims"])), np.float32)
    for row, agent in zip(padded, about["agents"]):
        row[0, : len(obs[agent])] = obs[agent]
    noise = rng.standard_normal((len(about["agents"]), 1, about["noise_size"])).astype(np.float32)
    actions = run(padded, noise)
    chosen = {{
        agent: int(action[0]) + 1 if about["discrete"] else action[0, :size]
        for agent, action, size in zip(about["agents"], actions, about["act_dims"])
    }}
    obs, rewards, *_ = env.step(chosen)
    total += sum(rewards.values())
print(repr(total))
"""
LOAD = {
    Format.ONNX: """
import onnxruntime
session = onnxruntime.InferenceSession({path!r})
text = session.get_modelmeta().custom_metadata_map["om2p"]
run = lambda obs, noise: session.run(["actions"], dict(obs=obs, noise=noise))[0]
""",
    Format.TORCH: """
import torch
extra = {{"om2p.json": ""}}
module = torch.export.load({path!r}, extra_files=extra).module()
text = extra["om2p.json"]
run = lambda obs, noise: module(torch.from_numpy(obs), torch.from_numpy(noise)).numpy()
""",
}


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("factory", ["Ferry", "discrete"])
def test_an_exported_team_plays_alone_what_the_policy_plays(runs, factory, form, tmp_path):
    if form is Format.ONNX:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    import torch

    from om2p_train.spaces import from_unit

    team = load_policy(policy_of(runs[factory]))
    path = tmp_path / ("team.onnx" if form is Format.ONNX else "team.pt2")
    assert export(team, path, form).difference <= 1e-4
    code = PLAY.format(tests=str(Path(__file__).parent), load=LOAD[form].format(path=str(path)))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    env, rng, total = Ferry(discrete=factory == "discrete"), np.random.default_rng(0), 0.0
    obs, _ = env.reset(seed=0)
    while env.agents:
        padded = np.zeros((2, 1, 4), np.float32)
        padded[0, 0, :3], padded[1, 0] = obs["bow"], obs["stern"]
        noise = rng.standard_normal((2, 1, team.actor.noise_dim)).astype(np.float32)
        with torch.no_grad():
            actions = from_unit(team.actor.act(torch.from_numpy(padded), torch.from_numpy(noise)).numpy(), team.spec)
        own = dict(zip(team.agents, (a[0] for a in actions), strict=True))
        obs, rewards, *_ = env.step({k: int(a) + 1 for k, a in own.items()} if env.discrete else own)
        total += sum(rewards.values())
    assert float(done.stdout) == pytest.approx(total, abs=1e-4)


def test_loading_a_policy_takes_no_training_code_and_no_data_format(runs):
    code = (
        "import sys; from om2p_train import load_policy; team = load_policy(sys.argv[1]);"
        "team.act({'bow': [0.0] * 3, 'stern': [0.0] * 4}); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(policy_of(runs["Ferry"]))], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "om2p_train.policy" in loaded
    unwanted = {"minari", "h5py", "matplotlib", "om2p_train.trainer", "om2p_train.learner", "om2p_train.algorithms"}
    assert not loaded & unwanted


def test_observations_that_are_no_numbers_are_refused(runs):
    team = load_policy(policy_of(runs["Ferry"]))
    with pytest.raises(ValueError, match=r"^the observation of 'stern' holds NaN or infinity$"):
        team.act({"bow": np.zeros(3), "stern": np.array([0, 0, np.nan, 0])})
    with pytest.raises(ValueError, match=r"^the observation of 'stern' has shape \(2, 4\), not \(4,\) or a batch"):
        team.act({"bow": np.zeros(3), "stern": np.zeros((2, 4))})
