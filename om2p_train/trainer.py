"""The run loop: data set and recipe in, a folder of facts out.

A run's folder holds
run.json                  what was run: recipe, data set and its hash, seeds, device, versions; and whether it finished
recipe.toml               the resolved recipe, which runs the same again
metrics.csv               losses by update, seed and agent
evaluations.csv           the return of every evaluation episode, by update and seed
policies/seed<K>.safetensors   each seed's team, for `load_policy`
checkpoint.safetensors    all weights, targets included
Results (means, tables, curves) are computed from these files later, by `report`.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import om2p_data
from om2p_data.behavior.policy import UniformPolicy
from om2p_data.dataset import Dataset
from om2p_data.envs import make
from om2p_data.envs.registry import TASKS, Task
from om2p_data.errors import UserError
from om2p_data.provenance import commit
from om2p_data.rollout import team_returns
from om2p_data.spec import TeamSpec
from om2p_data.storage import write_whole
from om2p_train import algorithms
from om2p_train.algorithms import Algorithm
from om2p_train.batches import Transitions
from om2p_train.config import TrainRecipe
from om2p_train.evaluation import Evaluator
from om2p_train.learner import Learner
from om2p_train.policy import save_policy
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams
from om2p_train.team import Team

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_RANDOM_STEPS = 25_000  # for the mean return of uniform actions: 1,000 particle episodes, 25 of HalfCheetah

RUN_FILE, EVALUATIONS_FILE, METRICS_FILE = "run.json", "evaluations.csv", "metrics.csv"
_RECIPE_FILE, _CHECKPOINT_FILE, _POLICIES, _EVENTS = "recipe.toml", "checkpoint.safetensors", "policies", "tensorboard"
_RUN_NAMES = (RUN_FILE, EVALUATIONS_FILE, METRICS_FILE, _RECIPE_FILE, _CHECKPOINT_FILE, _POLICIES, _EVENTS)


def task_of(dataset: Dataset) -> Task:
    """The task in whose worlds teams that learn from a data set are scored.

    Raises:
        UserError: it is of an environment of somebody else.
    """
    if dataset.task is None:
        raise UserError(
            f"{dataset.id} is of none of our tasks ({', '.join(TASKS)}), and teams are scored in their task's worlds"
        )
    return dataset.task


def train(
    dataset: Dataset,
    recipe: TrainRecipe,
    seeds: Sequence[int],
    folder: Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    tensorboard: bool | None = None,
    progress: bool = True,
) -> Path:
    """Train a recipe on a data set, all seeds stacked in one run.

    Args:
        dataset: what `om2p_data.dataset.load` returns.
        recipe: the resolved recipe.
        seeds: one learner team each; they share nothing but the arithmetic.
        folder: where the run's files go.
        device: torch device.
        overwrite: replace a run that is there already.
        tensorboard: write event files too; None writes them where TensorBoard is installed.
        progress: whether to show a bar.

    Returns:
        `folder`.

    Raises:
        UserError: no seeds or a seed twice, a run is there already, the folder cannot be written, no such device, or
            TensorBoard is asked for and not installed.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds must be different numbers from 0 up, not {list(seeds)}")
    place = _device(device)
    task = task_of(dataset)
    # Built before the folder is touched: options that make no sense together leave nothing behind.
    team = Team.of(dataset.environment.spec)
    streams = SeedStreams(seeds, INITIALISATION, place)
    algorithm = algorithms.find(recipe.algorithm)(team, recipe.network, recipe.options, streams)
    # Before the first file is opened, so that an interrupted start leaves nothing behind.
    facts = _facts(dataset, task, recipe, list(seeds), place)
    writers = _Writers(folder, overwrite, task.agents, list(seeds), tensorboard)
    try:
        writers.run(facts | {"finished": False}, recipe)
        data = Transitions(dataset, place, recipe.data)
        algorithm.policy.standardize(data.obs_mean, data.obs_scale)
        learner = Learner(algorithm, data, SeedStreams(seeds, SAMPLING, place), recipe.optimizer, recipe.run.updates)
        evaluator = Evaluator(algorithm.policy, task, list(seeds), recipe.run.evaluation_episodes, place)
        _loop(learner, evaluator, recipe, writers, f"{recipe.name} {task.alias}", progress)
        card = {key: facts[key] for key in ("algorithm", "recipe_name", "dataset", "task")}
        writers.weights(algorithm, dataset.environment.spec, card | {"updates": recipe.run.updates})
        writers.run(facts | {"finished": True}, recipe)
    finally:
        writers.close()
    return folder


def _loop(
    learner: Learner, evaluator: Evaluator, recipe: TrainRecipe, writers: _Writers, label: str, progress: bool
) -> None:
    run = recipe.run
    with tqdm(total=run.updates, desc=label, unit="update", disable=not progress) as bar:
        for update in range(1, run.updates + 1):
            losses = learner.update()
            if update % run.log_every == 0 or update == run.updates:
                writers.metrics(update, losses)
            if update % run.evaluate_every == 0 or update == run.updates:
                # The same starts at every evaluation: a curve moves because the policy moves.
                returns = evaluator.returns(world_seed=0)
                writers.evaluation(update, returns)
                bar.set_postfix_str(f"return {returns.mean():.1f}")
            bar.update()


class _Writers:
    """The files of one run."""

    def __init__(
        self, folder: Path, overwrite: bool, agents: Sequence[str], seeds: list[int], tensorboard: bool | None
    ):
        self._folder, self._agents, self._seeds = folder, agents, seeds
        if tensorboard is None:
            tensorboard = importlib.util.find_spec("tensorboard") is not None
        event_writer = _event_writer() if tensorboard else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _make_room(folder, overwrite)
            self._metrics_file = (folder / METRICS_FILE).open("w", newline="")
            self._evaluations_file = (folder / EVALUATIONS_FILE).open("w", newline="")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error
        self._metrics = csv.writer(self._metrics_file)
        self._evaluations = csv.writer(self._evaluations_file)
        self._evaluations.writerow(["update", "seed", "episode", "return"])
        self._metrics_header: list[str] | None = None
        self._events = event_writer(folder / _EVENTS) if event_writer is not None else None

    def run(self, facts: dict[str, Any], recipe: TrainRecipe) -> None:
        _write_text(self._folder / RUN_FILE, json.dumps(facts, indent=2) + "\n")
        _write_text(self._folder / _RECIPE_FILE, to_toml(recipe.tables()))

    def metrics(self, update: int, losses: dict[str, Tensor]) -> None:
        names = list(losses)
        for name, values in losses.items():
            if not bool(torch.isfinite(values).all()):
                raise UserError(
                    f"{name} is not finite at update {update}: the run has diverged; lower optimizer.learning_rate "
                    f"or options.eta"
                )
        if self._metrics_header is None:
            self._metrics_header = ["update", "seed", "agent", *names]
            self._metrics.writerow(self._metrics_header)
        values = torch.stack([losses[name] for name in names], -1).cpu().numpy()  # [S * N, losses]: one read
        keys = [(seed, agent) for seed in self._seeds for agent in self._agents]
        self._metrics.writerows(
            [update, *key, *(f"{value:.6g}" for value in row)] for key, row in zip(keys, values, strict=True)
        )
        self._metrics_file.flush()
        if self._events is not None:
            for column, name in enumerate(names):
                self._events.add_scalar(f"loss/{name}", float(values[:, column].mean()), update)

    def evaluation(self, update: int, returns: np.ndarray) -> None:
        rows: Iterable[list] = (
            [update, seed, episode, f"{value:.6g}"]
            for seed, row in zip(self._seeds, returns, strict=True)
            for episode, value in enumerate(row)
        )
        self._evaluations.writerows(rows)
        self._evaluations_file.flush()
        if self._events is not None:
            for seed, row in zip(self._seeds, returns, strict=True):
                self._events.add_scalar(f"return/seed{seed}", float(row.mean()), update)

    def weights(self, algorithm: Algorithm, spec: TeamSpec, card: dict[str, Any]) -> None:
        # Modules that share weights (an actor that is its own target) are written once.
        weights = {name: value.contiguous().cpu() for name, value in algorithm.named_parameters()}
        save_file(weights, self._folder / _CHECKPOINT_FILE)
        policies = self._folder / _POLICIES
        policies.mkdir(exist_ok=True)
        for index, seed in enumerate(self._seeds):
            path = policies / f"seed{seed}.safetensors"
            save_policy(path, algorithm.policy, index, spec, card | {"seed": seed})

    def close(self) -> None:
        self._metrics_file.close()
        self._evaluations_file.close()
        if self._events is not None:
            self._events.close()


def to_toml(tables: dict[str, Any]) -> str:
    """Tables of scalars and lists as TOML text (for these, TOML's values are JSON's)."""
    scalars = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    nested = [
        "\n".join([f"\n[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])
        for name, table in tables.items()
        if isinstance(table, dict)
    ]
    return "\n".join([*scalars, *nested]) + "\n"


def _facts(dataset: Dataset, task: Task, recipe: TrainRecipe, seeds: list[int], device: torch.device) -> dict[str, Any]:
    returns = dataset.episodes.team_returns
    return {
        "algorithm": recipe.algorithm,
        "recipe_name": recipe.name,
        "scale": recipe.scale.value,
        "recipe": recipe.tables(),
        "task": task.name,
        "dataset": dataset.id,
        "dataset_hash": dataset.metadata["content_hash"],
        "dataset_return_mean": float(returns.mean()),
        "random_return_mean": float(_random_returns(task).mean()),
        "seeds": seeds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"om2p": om2p_data.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit(),
    }


def _random_returns(task: Task) -> np.ndarray:
    episodes = _RANDOM_STEPS // task.horizon
    return team_returns(UniformPolicy(task), make(task.name, episodes), seed=0)


def _make_room(folder: Path, overwrite: bool) -> None:
    """Remove an earlier run, whole or broken off, if that is wanted; a folder with anything else is left alone."""
    present = {path.name: path for path in folder.iterdir()}
    foreign = sorted(set(present) - set(_RUN_NAMES))
    if foreign:
        raise UserError(f"{folder} is not empty and not only a run (it holds {foreign[0]}): choose another --out")
    if present and not overwrite:
        raise UserError(f"{folder} holds a run already: choose another --out, or add --overwrite")
    for path in present.values():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _event_writer() -> Callable[[Path], SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'om2p[tensorboard]'") from None
    return SummaryWriter


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that cannot hand back a number is no place to train
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason}; 'cpu' always can") from None
    return device


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
