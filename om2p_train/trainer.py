"""The run loop: data set and recipe in, a folder of facts out (see `run_folder`).

A run that is interrupted, in whatever way, goes on from its last checkpoint and ends with the same files, byte for
byte, as one that was not: everything that an update depends on is in the checkpoint, evaluations have random streams of
their own, and the tables are cut back to what they were at the checkpoint.
Results (means, tables, curves) are computed from the files later, by `report`.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_data.measuring import cpu_model
from om2p_data.provenance import commit
from om2p_data.storage import reason
from om2p_train import algorithms, behavior_teams, run_folder
from om2p_train.algorithms import Algorithm
from om2p_train.arena import obstacle, random_return
from om2p_train.batches import Transitions
from om2p_train.capture import CudaGraphs
from om2p_train.compute import usable_device
from om2p_train.config import RunConfig, TrainRecipe
from om2p_train.evaluation import Evaluator
from om2p_train.interruption import Interrupted, wishes
from om2p_train.learner import Learner
from om2p_train.loggers import Loggers, open_loggers
from om2p_train.policy import save_policy
from om2p_train.progress import Progress
from om2p_train.recorder import Recorder
from om2p_train.run_folder import POLICIES
from om2p_train.streams import INITIALISATION, SAMPLING, TELLING_APART, SeedStreams
from om2p_train.team import Team

if sys.platform != "win32":
    import resource

_PACKAGES = ("om2p", "torch", "numpy", "minari")


@dataclass(frozen=True)
class _Job:
    """What is to be trained, on what and where."""

    dataset: Dataset
    recipe: TrainRecipe
    seeds: list[int]
    folder: Path
    device: torch.device

    @property
    def label(self) -> str:
        task = self.dataset.task
        return f"{self.recipe.name} {self.task_name if task is None else task.alias}"

    @property
    def task_name(self) -> str:
        return self.dataset.environment.name

    @functools.cached_property
    def obstacle(self) -> str | None:
        """Why nobody can play the data set's environment here, None if it can be played."""
        return obstacle(self.dataset.environment)


@dataclass
class _Clock:
    """Seconds spent so far, in all the parts of an interrupted run."""

    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.training_seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.evaluation_seconds += time.perf_counter() - began


def train(
    dataset: Dataset,
    recipe: TrainRecipe,
    seeds: Sequence[int],
    folder: Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    resume: bool = False,
    loggers: Loggers | None = None,
    progress: bool = True,
) -> bool:
    """Train a recipe on a data set, all seeds stacked in one run.

    Args:
        dataset: what `om2p_data.dataset.load` returns.
        recipe: the resolved recipe.
        seeds: one learner team each; they share nothing but the arithmetic.
        folder: where the run's files go.
        device: torch device.
        overwrite: replace a run that is there already.
        resume: go on with the run that is there, if there is one.
        loggers: who looks on; by default TensorBoard, if it is installed.
        progress: show a bar, or where there is no terminal, a line an evaluation.

    Returns:
        Whether anything was left to do.

    Raises:
        UserError: no seeds or a seed twice, a batch larger than the data, more behaviour teams than episodes, another
            run is there already or being trained by another process, its files are damaged, the folder cannot be
            written or the disk is full, no such device, a logger that is asked for and not installed, or losses that
            are not finite.
        Interrupted: Ctrl-C or SIGTERM; the run can go on from there.
    """
    if overwrite and resume:
        raise UserError("--overwrite and --resume exclude each other: a run starts anew, or goes on")
    job = _job(dataset, recipe, seeds, folder, device)
    loggers = loggers or Loggers()
    try:
        # All that can be refused is, before the folder is touched.
        begun = resume and run_folder.holds_run(folder)
        facts = _facts(job, begun, loggers)
        algorithm, data, learner = _learner(job)
        if facts["finished"]:
            return False
        with _evaluator(job, algorithm) as evaluator, run_folder.claimed(folder), _full_disk(folder):
            if not begun:
                run_folder.make_room(folder, overwrite=overwrite)
            clock, recorder = _open(job, learner, facts, begun)
            finished = False
            try:
                if job.recipe.data.behavior_teams is not None and data.labels is None:
                    with clock.training():
                        facts["behavior_teams"] = _tell_apart(job, data, algorithm, progress)
                    run_folder.write_facts(folder, facts)
                _loop(job, learner, evaluator, recorder, clock, progress)
                _write_policies(job, algorithm)
                run_folder.write_facts(folder, facts | {"finished": True, "timing": _timing(job, clock)})
                finished = True
            finally:
                recorder.close(finished=finished)
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own for an accelerator without memory, and for a processor only these words.
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not out_of_memory:
            raise
        raise UserError(f"out of memory on {device}: take fewer seeds, smaller batches or networks") from error
    return True


def _job(dataset: Dataset, recipe: TrainRecipe, seeds: Sequence[int], folder: Path, device: str) -> _Job:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds must be different numbers from 0 up, not {list(seeds)}")
    transitions, batch_size = dataset.episodes.num_transitions, recipe.optimizer.batch_size
    if batch_size > transitions:
        raise UserError(
            f"optimizer.batch_size is {batch_size} and {dataset.id} has {transitions} transitions: set it lower"
        )
    teams, episodes = recipe.data.behavior_teams or 0, dataset.episodes.num_episodes
    if teams > episodes:
        raise UserError(
            f"data.behavior_teams is {teams} and {dataset.id} has {episodes} episodes, of which each needs some: "
            f"set it lower"
        )
    return _Job(dataset, recipe, list(seeds), folder, usable_device(device))


def _learner(job: _Job) -> tuple[Algorithm, Transitions, Learner]:
    recipe = job.recipe
    team = Team.of(job.dataset.environment.spec, recipe.data.behavior_teams)
    initial = SeedStreams(job.seeds, INITIALISATION, job.device)
    algorithm = algorithms.find(recipe.algorithm)(team, recipe.network, recipe.options, initial)
    data = Transitions(job.dataset, job.device, recipe.data)
    algorithm.policy.standardize(data.obs_mean, data.obs_scale)
    sampling = SeedStreams(job.seeds, SAMPLING, job.device)
    graphs = CudaGraphs() if job.device.type == "cuda" else None
    learner = Learner(algorithm, data, sampling, recipe.optimizer, recipe.run.updates, recipe.compute, graphs)
    return algorithm, data, learner


@contextlib.contextmanager
def _evaluator(job: _Job, algorithm: Algorithm) -> Iterator[Evaluator | None]:
    """What scores the policy; None, and a warning, where nobody can play its environment."""
    if job.obstacle is not None:
        print(f"warning: {job.obstacle}; training goes on without returns", file=sys.stderr)
        yield None
        return
    environment, episodes = job.dataset.environment, job.recipe.run.evaluation_episodes
    with contextlib.closing(Evaluator(algorithm.policy, environment, job.seeds, episodes, job.device)) as evaluator:
        yield evaluator


def _facts(job: _Job, begun: bool, loggers: Loggers) -> dict[str, Any]:
    """Contents of run.json: of the run that has begun, if it is this one, or of one that begins now."""
    identity = _identity(job)
    if not begun:
        return identity | loggers.choose(None) | _circumstances(job)
    facts = run_folder.read_facts(job.folder)
    run_folder.check_same(job.folder, facts, identity)
    return facts if facts["finished"] else facts | loggers.choose(facts)


def _open(job: _Job, learner: Learner, facts: dict[str, Any], begun: bool) -> tuple[_Clock, Recorder]:
    """Put the learner where the run's last checkpoint was taken, and open its files there."""
    folder = job.folder
    state = run_folder.read_checkpoint(folder)
    sizes, clock = _restore(folder, learner, state) if state is not None else ({}, _Clock())
    if begun:
        facts["resumed"].append({"update": learner.updates, "at": _now()} | _code())
    run_folder.write_facts(folder, facts)
    run_folder.write_recipe(folder, job.recipe.file())
    opened = open_loggers(folder, job.label, facts, learner.updates)
    return clock, Recorder(folder, job.seeds, job.dataset.environment.spec.agents, sizes, opened)


def _tell_apart(job: _Job, data: Transitions, algorithm: Algorithm, show: bool) -> list[dict[str, Any]]:
    """Find out which behaviour team played each episode; what is found is returned for run.json, seed by seed."""
    teams = job.recipe.data.behavior_teams
    assert teams is not None
    with wishes() as asked:

        def look() -> None:
            if (number := asked()) is not None:
                raise Interrupted(number, 0)

        streams = SeedStreams(job.seeds, TELLING_APART, job.device)
        found = behavior_teams.tell_apart(data, teams, streams, job.label, show, look)
    data.mark(found.labels, teams, found.best)
    algorithm.policy.play_as(found.best)
    if show:
        for seed, words in zip(job.seeds, found.words(), strict=True):
            print(f"{job.label}, seed {seed}: {words}", file=sys.stderr)
    return found.facts()


def _loop(
    job: _Job, learner: Learner, evaluator: Evaluator | None, recorder: Recorder, clock: _Clock, show: bool
) -> None:
    run = job.recipe.run
    with Progress(job.label, run.updates, learner.updates, show) as progress, wishes() as asked:
        while (before := learner.updates) < run.updates:
            with clock.training():
                losses = learner.update(_until_something(run, before))
                update = learner.updates
                last = update == run.updates
                if last or update % run.log_every == 0:
                    recorder.losses(update, losses, job.recipe)
                evaluates = evaluator is not None and (last or update % run.evaluate_every == 0)
                if evaluates and job.device.type == "cuda":
                    torch.cuda.synchronize(job.device)  # or the evaluation would seem to take the updates' time
            if evaluator is not None and evaluates:
                with clock.evaluation(), _own_threads():
                    # The same starts at every evaluation: a curve moves because the policy moves.
                    returns = evaluator.returns(world_seed=0)
                recorder.returns(update, returns)
                progress.evaluated(update, float(returns.mean()))
            number = asked()
            if last or number is not None or update % run.checkpoint_every == 0:
                run_folder.write_checkpoint(
                    job.folder, {"learner": learner.state(), "tables": recorder.sizes(), "clock": asdict(clock)}
                )
            progress.step(update - before)
            if number is not None and not last:
                raise Interrupted(number, update)


def _until_something(run: RunConfig, done: int) -> int:
    """Updates until the losses are read, the policy is scored, a checkpoint is due or all are done."""
    periods = (run.log_every, run.evaluate_every, run.checkpoint_every)
    return min(run.updates - done, *(period - done % period for period in periods))


def _restore(folder: Path, learner: Learner, state: Mapping[str, Any]) -> tuple[dict[str, int], _Clock]:
    """Put a learner where a checkpoint was taken; sizes of the tables and the clock of that moment."""
    fresh = learner.state()["weights"]
    try:
        shapes = {name: value.shape for name, value in state["learner"]["weights"].items()}
        if shapes != {name: value.shape for name, value in fresh.items()}:
            raise ValueError("its networks have other sizes")
        learner.restore(state["learner"])
        return {name: int(size) for name, size in state["tables"].items()}, _Clock(**state["clock"])
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"the checkpoint in {folder} does not fit the run: {type(error).__name__}: {error}; --overwrite starts anew"
        ) from error


def _write_policies(job: _Job, algorithm: Algorithm) -> None:
    policies = job.folder / POLICIES
    policies.mkdir(exist_ok=True)
    card = {
        "algorithm": job.recipe.algorithm,
        "recipe_name": job.recipe.name,
        "dataset": job.dataset.id,
        "dataset_hash": job.dataset.metadata["content_hash"],
        "task": job.task_name,
        "updates": job.recipe.run.updates,
    }
    for index, seed in enumerate(job.seeds):
        path = policies / f"seed{seed}.safetensors"
        save_policy(path, algorithm.policy, index, job.dataset.environment, card | {"seed": seed})


def _identity(job: _Job) -> dict[str, Any]:
    """What makes a run this one: going on with it takes the same."""
    return {
        "algorithm": job.recipe.algorithm,
        "recipe_name": job.recipe.name,
        "scale": job.recipe.scale.value,
        "recipe": job.recipe.tables(),
        "task": job.task_name,
        "dataset": job.dataset.id,
        "dataset_hash": job.dataset.metadata["content_hash"],
        "seeds": job.seeds,
        "device": job.device.type,
    }


def _circumstances(job: _Job) -> dict[str, Any]:
    """What else is worth knowing about a run that begins now."""
    cuda = job.device.type == "cuda"
    with _own_threads():
        random = random_return(job.dataset.environment) if job.obstacle is None else None
    return {
        "settings": list(job.recipe.settings),
        "dataset_card": job.dataset.card(),
        "dataset_return_mean": float(job.dataset.episodes.team_returns.mean()),
        "random_return_mean": random,
        "hardware": torch.cuda.get_device_name(job.device) if cuda else cpu_model(),
        "threads": torch.get_num_threads(),
        "started": _now(),
        **_code(),
        "resumed": [],
        "finished": False,
    }


def _code() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return {"versions": versions, "commit": commit()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _timing(job: _Job, clock: _Clock) -> dict[str, float]:
    """How fast the run was, and the most memory that it held since its last start, in 10^6 bytes."""
    timing = asdict(clock) | {"updates_per_second": job.recipe.run.updates / clock.training_seconds}
    if job.device.type == "cuda":
        return timing | {"peak_memory_mb": torch.cuda.max_memory_allocated(job.device) / 1e6}
    if sys.platform == "win32":
        return timing
    unit = 1 if sys.platform == "darwin" else 1024
    return timing | {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


@contextlib.contextmanager
def _own_threads() -> Iterator[None]:
    """Give torch back its number of threads after the worlds, whose own number OpenMP takes for everybody's.

    Sums depend on it, so a run that goes on must not be in another state than one that has just evaluated.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Say what can be done where a file of the run cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {reason(error)}; once that is mended, the same command with --resume goes on"
        ) from error
