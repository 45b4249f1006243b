"""The run loop: data set and recipe in, a folder of facts out (see `run_folder`).

A run that is interrupted, in whatever way, goes on from its last checkpoint and ends with the same files, byte for
byte, as one that was not: everything that an update depends on is in the checkpoint, evaluations have random streams of
their own, and the tables are cut back to what they were at the checkpoint.
Results (means, tables, curves) are computed from the files later, by `report`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_data.storage import reason
from om2p_train import algorithms, run_folder
from om2p_train.algorithms import Algorithm
from om2p_train.batches import Transitions
from om2p_train.behavior_teams import BehaviorTeams, described, tell_apart
from om2p_train.capture import CudaGraphs
from om2p_train.compute import own_threads
from om2p_train.config import RunConfig, TrainRecipe
from om2p_train.evaluation import Evaluator
from om2p_train.interruption import Interrupted, wishes
from om2p_train.learner import Learner
from om2p_train.loggers import Loggers, open_loggers
from om2p_train.policy import save_policy
from om2p_train.progress import Progress
from om2p_train.recorder import Recorder
from om2p_train.run_folder import POLICIES
from om2p_train.run_plan import RunPlan, code, now
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams
from om2p_train.team import Team

if sys.platform != "win32":
    import resource


@dataclass
class _Clock:
    """Seconds spent so far, in all the parts of an interrupted run."""

    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    telling_apart_seconds: float = 0.0

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
        Interrupted: Ctrl-C or SIGTERM; the run can go on from there, or begin where it had not yet.
    """
    if overwrite and resume:
        raise UserError("--overwrite and --resume exclude each other: a run starts anew, or goes on")
    plan = RunPlan.of(dataset, recipe, seeds, folder, device)
    loggers = loggers or Loggers()
    try:
        # All that can be refused is, before the folder is touched.
        begun = resume and run_folder.holds_run(folder)
        facts = _facts(plan, begun, loggers)
        if facts["finished"]:
            return False
        if not begun:
            run_folder.check_room(folder, overwrite=overwrite)
        data, clock = Transitions(dataset, plan.device, recipe.data), _Clock()
        algorithm, learner = _learner(plan, data, None)
        with run_folder.claimed(folder):
            if resume and run_folder.holds_run(folder):  # another process may have trained here until now
                begun, facts = True, _facts(plan, True, loggers)
                if facts["finished"]:
                    return False
            state = run_folder.read_checkpoint(folder) if begun else None
            teams = _behavior_teams(plan, data, state, clock, progress)
            if teams is not None:
                facts.setdefault("behavior_teams", teams.facts())  # a run that goes on has said why there are no more
                algorithm, learner = _learner(plan, data, teams)
            with _evaluator(plan, algorithm) as evaluator, _full_disk(folder):
                if not begun:
                    run_folder.make_room(folder, overwrite=overwrite)
                recorder = _open(plan, learner, facts, begun, state, clock)
                finished = False
                try:
                    _loop(plan, learner, evaluator, recorder, clock, progress)
                    _write_policies(plan, algorithm)
                    run_folder.write_facts(folder, facts | {"finished": True, "timing": _timing(plan, clock)})
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


def _learner(plan: RunPlan, data: Transitions, teams: BehaviorTeams | None) -> tuple[Algorithm, Learner]:
    recipe, number = plan.recipe, 1 if teams is None else teams.number
    team = Team.of(plan.dataset.environment.spec, number if number > 1 else 0)
    initial = SeedStreams(plan.seeds, INITIALISATION, plan.device)
    algorithm = algorithms.find(recipe.algorithm)(team, recipe.network, recipe.options, initial)
    algorithm.policy.standardize(data.obs_mean, data.obs_scale)
    if teams is not None:
        data.mark(teams.labels, teams.number, teams.best)
        if number > 1:
            algorithm.policy.play_as(teams.best)
    sampling = SeedStreams(plan.seeds, SAMPLING, plan.device)
    graphs = CudaGraphs() if plan.device.type == "cuda" else None
    learner = Learner(algorithm, data, sampling, recipe.optimizer, recipe.run.updates, recipe.compute, graphs)
    return algorithm, learner


@contextlib.contextmanager
def _evaluator(plan: RunPlan, algorithm: Algorithm) -> Iterator[Evaluator | None]:
    """What scores the policy; None, and a warning, where nobody can play its environment."""
    if plan.obstacle is not None:
        print(f"warning: {plan.obstacle}; training goes on without returns", file=sys.stderr)
        yield None
        return
    environment, episodes = plan.dataset.environment, plan.recipe.run.evaluation_episodes
    with contextlib.closing(Evaluator(algorithm.policy, environment, plan.seeds, episodes, plan.device)) as evaluator:
        yield evaluator


def _facts(plan: RunPlan, begun: bool, loggers: Loggers) -> dict[str, Any]:
    """Contents of run.json: of the run that has begun, if it is this one, or of one that begins now."""
    identity = plan.identity()
    if not begun:
        return identity | loggers.choose(None) | plan.circumstances()
    facts = run_folder.read_facts(plan.folder)
    run_folder.check_same(plan.folder, facts, identity)
    return facts if facts["finished"] else facts | loggers.choose(facts)


def _open(
    plan: RunPlan, learner: Learner, facts: dict[str, Any], begun: bool, state: Mapping[str, Any] | None, clock: _Clock
) -> Recorder:
    """Put learner and clock where the run's last checkpoint was taken, if there is one, and open its files there."""
    folder = plan.folder
    sizes = {} if state is None else _restore(folder, learner, state, clock)
    if begun:
        facts["resumed"].append({"update": learner.updates, "at": now()} | code())
    run_folder.write_facts(folder, facts)
    run_folder.write_recipe(folder, plan.recipe.file())
    opened = open_loggers(folder, plan.label, facts, learner.updates)
    return Recorder(folder, plan.seeds, plan.dataset.environment.spec.agents, sizes, opened)


def _behavior_teams(
    plan: RunPlan, data: Transitions, state: Mapping[str, Any] | None, clock: _Clock, show: bool
) -> BehaviorTeams | None:
    """Who played each episode, as the run's checkpoint knows or what they did tells; None where nobody asks."""
    wanted = plan.recipe.data.behavior_teams
    if wanted is None:
        return None
    if state is not None:
        with _fits(plan.folder):
            learned = state["learner"]
            return described(data, int(learned["behavior_teams"]), learned["labels"].to(plan.device))
    if show and not sys.stderr.isatty():
        print(f"{plan.label}: telling behaviour teams apart", file=sys.stderr)
    began = time.perf_counter()
    with wishes() as asked:

        def look() -> None:
            if (number := asked()) is not None:
                raise Interrupted(number, None)

        found = tell_apart(data, wanted, plan.label, show, look)
    clock.telling_apart_seconds = time.perf_counter() - began
    if show:
        print(f"{plan.label}: {found.words()}", file=sys.stderr)
    return found


def _loop(
    plan: RunPlan, learner: Learner, evaluator: Evaluator | None, recorder: Recorder, clock: _Clock, show: bool
) -> None:
    run = plan.recipe.run
    with Progress(plan.label, run.updates, learner.updates, show) as progress, wishes() as asked:
        while (before := learner.updates) < run.updates:
            with clock.training():
                losses = learner.update(_until_something(run, before))
                update = learner.updates
                last = update == run.updates
                if last or update % run.log_every == 0:
                    recorder.losses(update, losses, plan.recipe)
                evaluates = evaluator is not None and (last or update % run.evaluate_every == 0)
                if evaluates and plan.device.type == "cuda":
                    torch.cuda.synchronize(plan.device)  # or the evaluation would seem to take the updates' time
            if evaluator is not None and evaluates:
                with clock.evaluation(), own_threads():
                    # The same starts at every evaluation: a curve moves because the policy moves.
                    returns = evaluator.returns(world_seed=0)
                recorder.returns(update, returns)
                progress.evaluated(update, float(returns.mean()))
            number = asked()
            if last or number is not None or update % run.checkpoint_every == 0:
                run_folder.write_checkpoint(
                    plan.folder, {"learner": learner.state(), "tables": recorder.sizes(), "clock": asdict(clock)}
                )
            progress.step(update - before)
            if number is not None and not last:
                raise Interrupted(number, update)


def _until_something(run: RunConfig, done: int) -> int:
    """Updates until the losses are read, the policy is scored, a checkpoint is due or all are done."""
    periods = (run.log_every, run.evaluate_every, run.checkpoint_every)
    return min(run.updates - done, *(period - done % period for period in periods))


@contextlib.contextmanager
def _fits(folder: Path) -> Iterator[None]:
    """Turn away a checkpoint that is of other sizes, or of none."""
    try:
        yield
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"the checkpoint in {folder} does not fit the run: {type(error).__name__}: {error}; --overwrite starts anew"
        ) from error


def _restore(folder: Path, learner: Learner, state: Mapping[str, Any], clock: _Clock) -> dict[str, int]:
    """Put a learner and a clock where a checkpoint was taken; sizes of the tables at that moment."""
    fresh = learner.state()["weights"]
    with _fits(folder):
        shapes = {name: value.shape for name, value in state["learner"]["weights"].items()}
        if shapes != {name: value.shape for name, value in fresh.items()}:
            raise ValueError("its networks have other sizes")
        learner.restore(state["learner"])
        clock.__dict__.update(asdict(_Clock(**state["clock"])))
        return {name: int(size) for name, size in state["tables"].items()}


def _write_policies(plan: RunPlan, algorithm: Algorithm) -> None:
    policies = plan.folder / POLICIES
    policies.mkdir(exist_ok=True)
    card = {
        "algorithm": plan.recipe.algorithm,
        "recipe_name": plan.recipe.name,
        "dataset": plan.dataset.id,
        "dataset_hash": plan.dataset.metadata["content_hash"],
        "task": plan.task_name,
        "updates": plan.recipe.run.updates,
    }
    for index, seed in enumerate(plan.seeds):
        path = policies / f"seed{seed}.safetensors"
        save_policy(path, algorithm.policy, index, plan.dataset.environment, card | {"seed": seed})


def _timing(plan: RunPlan, clock: _Clock) -> dict[str, float]:
    """How fast the run was, and the most memory that it held since its last start, in 10^6 bytes."""
    timing = asdict(clock) | {"updates_per_second": plan.recipe.run.updates / clock.training_seconds}
    if plan.device.type == "cuda":
        return timing | {"peak_memory_mb": torch.cuda.max_memory_allocated(plan.device) / 1e6}
    if sys.platform == "win32":
        return timing
    unit = 1 if sys.platform == "darwin" else 1024
    return timing | {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Say what can be done where a file of the run cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {reason(error)}; once that is mended, the same command with --resume goes on"
        ) from error
