"""Runs that cannot go on: one line says why, and nothing is touched. And who looks on."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from om2p_data import checkpoints
from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_train import config, run_folder, trainer
from om2p_train.config import Scale
from om2p_train.learner import Learner
from om2p_train.loggers import Loggers

from .runs import contents, make_dataset, results, run

BC = ("network.hidden=[8]", "run.updates=12", "run.evaluate_every=4", "run.log_every=4", "run.checkpoint_every=5")


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("datasets"))


def small(data: Dataset, folder: Path, *settings: str, algo: str = "bc", **options) -> Path:
    return run(data, folder, *BC, *settings, algo=algo, **({"loggers": Loggers(tensorboard=False)} | options))


@pytest.fixture
def broken_off(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed at update 7, with TensorBoard."""
    return break_off(data, tmp_path / "run", loggers=Loggers(tensorboard=True))


def break_off(data: Dataset, folder: Path, **options) -> Path:
    real = Learner.update

    def update(self: Learner, most: int = 1):
        if self.updates == 7:
            raise Killed
        return real(self, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", update)
        with pytest.raises(Killed):
            small(data, folder, **options)
    return folder


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (["optimizer.learning_rate=0.5"], {}, r"optimizer\.learning_rate is 0\.001 in .*run and 0\.5 here"),
        (["run.updates=13"], {}, r"run\.updates is 12 in .*run and 13 here"),
        (["optimizer.max_gradient=1.0"], {}, r"optimizer\.max_gradient is not set in .*run and 1\.0 here"),
        (["network.hidden=[8,8]"], {}, r"network\.hidden is \[8\] in .*run and \[8, 8\] here"),
        ([], {"algo": "om2p"}, r"algorithm is bc in .*run and om2p here: choose another --out, or add --overwrite"),
        ([], {"seeds": [0]}, r"seeds are \[0, 1\] in .*run and \[0\] here"),
        ([], {"overwrite": True}, r"--overwrite and --resume exclude each other"),
    ],
)
def test_another_run_does_not_go_on(settings, options, message, data, broken_off):
    before = contents(broken_off)
    with pytest.raises(UserError, match=message):
        small(data, broken_off, *settings, resume=True, **options)
    assert contents(broken_off) == before


def test_a_changed_data_set_is_noticed(data, broken_off, tmp_path):
    changed = make_dataset(tmp_path / "datasets", seed=1)
    before = contents(broken_off)
    old, new = data.metadata["content_hash"], changed.metadata["content_hash"]
    with pytest.raises(UserError, match=rf"random-v0 is another data set than when .*{old}, now {new}\): --overwrite"):
        small(changed, broken_off, resume=True)
    assert contents(broken_off) == before


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def without(key: str):
    def change(path: Path) -> None:
        facts = json.loads(path.read_text())
        del facts[key]
        path.write_text(json.dumps(facts))

    return change


def of_other_sizes(path: Path) -> None:
    state = checkpoints.load(path)
    weights = state["learner"]["weights"]
    weights[next(iter(weights))] = torch.zeros(1)
    checkpoints.save(path, state)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("checkpoint.safetensors", shorten, r"checkpoint .* cannot be read: .*; delete it to start anew"),
        ("checkpoint.safetensors", flip_a_bit, r"checkpoint .* cannot be read: its checksum is wrong; delete it"),
        (
            "checkpoint.safetensors",
            of_other_sizes,
            r"checkpoint in .* does not fit the run: .*networks have other",
        ),
        ("metrics.csv", shorten, r"metrics\.csv is shorter than it was at the run's checkpoint: --overwrite"),
        ("run.json", Path.unlink, r"run has no run\.json: no run can go on there; choose another --out, or"),
        ("run.json", shorten, r"run\.json is damaged: Invalid JSON.*--overwrite starts anew"),
        ("run.json", without("seeds"), r"run\.json is damaged: seeds: Field required; --overwrite"),
    ],
)
def test_a_damaged_run_does_not_go_on(name, damage, message, data, broken_off):
    damage(broken_off / name)
    before = contents(broken_off)
    with pytest.raises(UserError, match=message) as caught:
        small(data, broken_off, resume=True)
    assert "\n" not in str(caught.value)
    after = contents(broken_off)
    assert {key: after[key] for key in before if key != "run.json"} == {
        key: value for key, value in before.items() if key != "run.json"
    }
    small(data, broken_off, overwrite=True)
    assert run_folder.read_facts(broken_off)["finished"]


def test_a_run_without_a_folder_begins_and_a_finished_one_is_left_alone(data, tmp_path):
    folder = small(data, tmp_path / "run", resume=True)
    facts = run_folder.read_facts(folder)
    assert facts["finished"]
    assert facts["resumed"] == []
    before = contents(folder)
    recipe = config.load(folder / "recipe.toml", "cooperative-navigation", None)
    assert trainer.train(data, recipe, [0, 1], folder, resume=True, progress=False) is False
    assert contents(folder) == before


def test_two_processes_do_not_train_in_one_folder(data, broken_off):
    before = contents(broken_off)
    with run_folder.claimed(broken_off), pytest.raises(UserError, match="another process is training in"):
        small(data, broken_off, resume=True)
    assert contents(broken_off) == before


def test_a_recipe_of_a_run_keeps_its_name_and_scale(data, tmp_path):
    recipe = config.load("bc", "cooperative-navigation", None, Scale.PAPER, [*BC, "run.evaluation_episodes=2"])
    trainer.train(data, recipe, [0], tmp_path / "run", progress=False, loggers=Loggers(tensorboard=False))
    path = tmp_path / "run" / "recipe.toml"
    assert config.load(path, "cooperative-navigation", None) == recipe
    assert config.load(path, "cooperative-navigation", None, Scale.PAPER) == recipe
    with pytest.raises(UserError, match=r"is resolved at scale paper, and scale cpu cannot be had from it"):
        config.load(path, "cooperative-navigation", None, Scale.CPU)


def test_a_batch_larger_than_the_data_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"optimizer\.batch_size is 1001 and .*random-v0 has 1000 transitions"):
        small(data, tmp_path / "run", "optimizer.batch_size=1001")
    assert not (tmp_path / "run").exists()


def test_a_diverged_run_names_the_loss_and_keys_that_it_has(data, tmp_path):
    with pytest.raises(UserError, match=r"actor_loss of seed 0, agent_0, is not finite at update 4.*") as caught:
        small(data, tmp_path / "run", "optimizer.learning_rate=1e38")
    assert str(caught.value).endswith("lower optimizer.learning_rate")


def test_tensorboard_shows_every_update_once(data, broken_off):
    small(data, broken_off, resume=True, loggers=Loggers(tensorboard=True))
    events = EventAccumulator(str(broken_off / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("return/seed0")] == [4, 8, 12]
    assert [event.step for event in events.Scalars("loss/actor_loss")] == [4, 8, 12]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_goes_on_with_or_without_tensorboard_as_it_began(wanted, data, tmp_path):
    folder = break_off(data, tmp_path / "run", loggers=Loggers(tensorboard=wanted))
    small(data, folder, resume=True, loggers=Loggers())
    assert (folder / "tensorboard").is_dir() == wanted
    if wanted:
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("return/seed0")] == [4, 8, 12]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list:
    """What a stand-in of wandb was told."""
    told = []

    class Run:
        def log(self, values, step):
            told.append((step, sorted(values)))

        def finish(self, exit_code):
            told.append(("finish", exit_code))

    def init(**options):
        told.append(("init", options["id"], options["project"], options["resume"]))
        return Run()

    module = types.ModuleType("wandb")
    module.__dict__.update(init=init, Error=RuntimeError, __spec__=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_a_run_stays_one_run_of_wandb(data, tmp_path, wandb):
    folder = break_off(data, tmp_path / "run", loggers=Loggers(tensorboard=False, wandb=True, wandb_project="mine"))
    small(data, folder, resume=True)
    starts = [entry for entry in wandb if entry[0] == "init"]
    assert len(starts) == 2
    assert starts[0] == starts[1]
    assert starts[0][2:] == ("mine", "allow")
    assert [entry[1] for entry in wandb if entry[0] == "finish"] == [1, 0]
    assert (12, ["return/seed0", "return/seed1"]) in wandb
    whole = small(data, tmp_path / "whole")
    assert results(folder) == results(whole)
    assert run_folder.read_facts(whole)["wandb"] is None


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_logger_that_is_missing_is_named_before_anything_is_written(package, data, tmp_path, monkeypatch):
    monkeypatch.setattr("om2p_train.loggers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"is not installed: pip install 'om2p\[{package}\]'"):
        small(data, tmp_path / "run", loggers=Loggers(**{package: True}))
    assert not (tmp_path / "run").exists()


def test_a_team_that_an_algorithm_refuses_leaves_nothing_behind(discrete_dataset, tmp_path):
    with pytest.raises(UserError, match="needs continuous actions"):
        small(discrete_dataset, tmp_path / "run", algo="om2p")
    assert not (tmp_path / "run").exists()
