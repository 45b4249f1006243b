"""The benchmark: updates, evaluations and actions, timed in turns in one run."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from om2p_data.dataset import Dataset
from om2p_data.measuring import Rate, measure_rates
from om2p_train.actors import Actor, BestOfFlowActor
from om2p_train.bench import limits
from om2p_train.bench.cases import Case, has_peers, learner_of, made_up, peer_data, setting_of
from om2p_train.bench.plain import PlainTeam
from om2p_train.compute import Precision
from om2p_train.config import Scale
from om2p_train.evaluation import Evaluator
from om2p_train.learner import Learner
from om2p_train.streams import EVALUATION, SeedStreams

_TRANSITIONS = 100_000  # of the made-up data; the memory they take is counted apart
_PAPER_EVERY, _PAPER_EPISODES = 100, 10  # the paper's evaluation load: so many episodes every so many updates
_MEMORY_UPDATES = 20
_UPDATES = 1_000  # more than a launch may take
_BETWEEN_WAITS, _BETWEEN_WAITS_OF_PEERS = 50, 20  # updates until an accelerator is waited for
_PEAK = Path("/proc/self/clear_refs")
_BATCHES = (1, 1000)  # environments that one joint action is for


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        recipes: names; task: alias; seeds: how many are stacked, each of them; settings: overrides of all recipes.
        scale: of the recipes; precisions: of `compute.precision`, each of them.
        device: torch device.
        repeats, seconds: how often and how long each loop is timed.
        peers: whether OM2P's peers take turns with it.
    """

    recipes: Sequence[str]
    task: str
    seeds: Sequence[int]
    settings: tuple[str, ...]
    scale: Scale
    precisions: Sequence[str]
    device: str
    repeats: int
    seconds: float
    peers: bool


def updates(plan: Plan, progress: bool) -> list[dict[str, Any]]:
    """How fast every recipe learns, beside the peers: one row a recipe, number of seeds and precision.

    Raises:
        UserError: no such recipe, key or task.
    """
    dataset = made_up(plan.task, _TRANSITIONS)
    cases = [
        (case, case.resolve(plan.scale), how)  # all of them first: a wrong name at the end must not cost the rest
        for name, seeds, how in itertools.product(plan.recipes, plan.seeds, plan.precisions)
        for case in [Case(name, plan.task, seeds, (*plan.settings, f"compute.precision={how!r}"), plan.device)]
    ]
    rows = []
    for case, recipe, precision in tqdm(cases, desc="updates", disable=not progress):
        algorithm, learner = learner_of(case, recipe, dataset)
        loops: dict[str, Callable[[], int]] = {"ours": _updates_of(learner, plan.device)}
        if plan.peers and case.recipe == "om2p" and case.seeds == 1 and precision == "full" and has_peers(recipe):
            loops |= dict(_peers(setting_of(recipe, dataset), dataset, plan.device))
        rates = measure_rates(loops, plan.repeats, plan.seconds)
        ours = rates["ours"]
        evaluation = _evaluation_seconds(algorithm.policy, dataset, case.seeds, plan.device)
        work = limits.work_of(case, recipe, dataset)
        machine = limits.measure(plan.device, Precision(precision))
        least = machine.milliseconds(work)
        rows.append(
            {
                "recipe": case.recipe,
                "seeds": case.seeds,
                "precision": precision,
                "ms_per_update": 1e3 / ours.median,
                "updates_per_second": ours.median,
                "cpu_ms_per_update": 1e3 / ours.per_cpu_second,
                "evaluation_ms": 1e3 * evaluation,
                "ms_with_paper_evaluation": 1e3 / ours.median + 1e3 * evaluation / _PAPER_EVERY,
                "memory_mb": _memory(case, plan.scale),
                **{f"{name}_ms": 1e3 / rate.median for name, rate in rates.items() if name != "ours"},
                **{f"times_{name}": ours.median / rate.median for name, rate in rates.items() if name != "ours"},
                "gflop": work.flops / 1e9,
                "moved_mb": work.moved / 1e6,
                "machine_gflops": machine.flops / 1e9,
                "machine_gb_per_second": machine.moved / 1e9,
                "least_ms": least,
                "of_limit": least * ours.median / 1e3,
                "spread": _spread(ours),
            }
        )
        del algorithm, learner, loops
        _release(plan.device)
    return rows


def actions(plan: Plan, progress: bool) -> list[dict[str, Any]]:
    """How long one joint action takes, for one and for many environments: one step against several.

    Raises:
        UserError: no such key or task.
    """
    dataset = made_up(plan.task, 1)
    actors: dict[str, tuple[Actor, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {}
    for name in ("bc-flow", "om2p", "ma-fql", "ma-sfbc"):
        # As a policy file acts: through PyTorch's own operations.
        case = Case(name, plan.task, 1, (*plan.settings, "compute.fused=false"), plan.device)
        algorithm: Any
        algorithm, _ = learner_of(case, case.resolve(plan.scale), dataset)
        actor = algorithm.policy
        if name == "ma-fql":
            actors[f"flow, {algorithm.options.flow_steps} steps"] = (actor, algorithm.flow_actions)
        elif name == "ma-sfbc":
            actors[f"diffusion, {algorithm.options.candidates} candidates"] = (actor, actor.act)
        elif isinstance(actor, BestOfFlowActor):
            actors[f"one step, best of {algorithm.options.candidates} (OM2P)"] = (actor, actor.act)
        else:
            actors["one step"] = (actor, actor.act)
    spec, rows = dataset.environment.spec, []
    for batch in tqdm(_BATCHES, desc="actions", disable=not progress):
        loops = {}
        for name, (actor, act) in actors.items():
            obs = torch.randn(spec.num_agents, batch, spec.obs_dim, device=plan.device)
            eps = SeedStreams([0], EVALUATION, plan.device).normal(spec.num_agents, batch, actor.noise_dim)
            loops[name] = _actions_of(act, obs, eps, plan.device)
        rates = measure_rates(loops, plan.repeats, plan.seconds)
        rows += [{"policy": name, "environments": batch, "ms": 1e3 / rate.median} for name, rate in rates.items()]
    return rows


PAPER = (
    "The OM2P paper's Table 2 (RTX A6000, 10,000 updates with 10 evaluation episodes every 100): MA-SfBC 624 ms an "
    "update and 1,036 MB, MA-FQL 71.5 ms and 906 MB, OM2P with gradients 67.9 ms and 2,442 MB, OM2P 57.6 ms and 650 MB."
)


def tables(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What people read of `updates`: costs, how near they are to the machine's limit, and the peers, where timed."""
    shown = ("recipe", "seeds", "precision", "ms_per_update", "updates_per_second")
    shown = (*shown, "evaluation_ms", "ms_with_paper_evaluation", "memory_mb")
    costs = [{key: row[key] for key in shown} for row in rows]
    near = ("recipe", "seeds", "precision", "gflop", "moved_mb", "least_ms", "ms_per_update", "of_limit")
    limit = [{key: row[key] for key in near} for row in rows]
    beside = [row for row in rows if "plain_ms" in row]
    peers = [
        {"recipe": row["recipe"], "ms_per_update": row["ms_per_update"]}
        | {key: row[key] for name in ("plain", "jax") for key in (f"{name}_ms", f"times_{name}") if key in row}
        for row in beside
    ]
    return [costs, limit, *([peers] if peers else [])]


def _updates_of(learner: Learner, device: str) -> Callable[[], int]:
    def loop() -> int:
        before = learner.updates
        while learner.updates - before < _between_waits(device, _BETWEEN_WAITS):
            learner.update(_UPDATES)
        _wait(device)
        return learner.updates - before

    return loop


def _between_waits(device: str, most: int) -> int:
    """Updates between two looks at the clock; waiting for an accelerator each time would be counted as work."""
    return 1 if device == "cpu" else most


def _peers(setting: Any, dataset: Dataset, device: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """A plain loop over the agents in PyTorch, and JAX where it is installed and computes on the same device."""
    data = peer_data(dataset)
    plain = PlainTeam(setting, {name: torch.from_numpy(values).to(device) for name, values in data.items()})

    def loop() -> int:
        for _ in range(count := _between_waits(device, _BETWEEN_WAITS_OF_PEERS)):
            plain.update()
        _wait(device)
        return count

    yield "plain", loop
    if importlib.util.find_spec("jax") is None:
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from om2p_train.bench.jax_peer import JaxTeam

    if (jax.default_backend() == "gpu") != (device != "cpu"):
        return
    team = JaxTeam(setting, data)

    def compiled() -> int:
        for _ in range(count := _between_waits(device, _BETWEEN_WAITS_OF_PEERS)):
            team.update()
        team.wait()
        return count

    yield "jax", compiled


@torch.no_grad()
def _actions_of(act: Callable, obs: torch.Tensor, eps: torch.Tensor, device: str) -> Callable[[], int]:
    def loop() -> int:
        with torch.no_grad():
            act(obs, eps)
        _wait(device)
        return 1

    return loop


def _evaluation_seconds(actor: Actor, dataset: Dataset, seeds: int, device: str) -> float:
    """Median time of one of the paper's evaluations, of all seeds."""
    evaluator = Evaluator(actor, dataset.environment, range(seeds), _PAPER_EPISODES, device)
    try:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            evaluator.returns(world_seed=0)
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    finally:
        evaluator.close()


def _memory(case: Case, scale: Scale) -> float | None:
    """Most memory of a learner besides its data and the libraries, in 10^6 bytes; in a process of its own.

    None where the system does not say: only Linux lets a process forget how large it was while it was made.
    """
    if case.device == "cpu" and not _PEAK.exists():
        return None
    words = [sys.executable, "-m", "om2p_train.bench.measure", case.recipe, case.task, str(case.seeds), case.device]
    found = subprocess.run([*words, scale.value, *case.settings], check=True, stdout=subprocess.PIPE, text=True)
    return float(found.stdout.split()[-1])


def memory_of(case: Case, scale: Scale) -> float:
    """As `_memory`, in this process, which must have done nothing else."""
    dataset = made_up(case.task, _TRANSITIONS)
    recipe = case.resolve(scale)
    if case.device == "cpu":
        warm = Case("bc", case.task, 1, (), case.device)
        _, first = learner_of(warm, warm.resolve(Scale.CPU), dataset)
        first.update()  # loads what is loaded once
        del first
        gc.collect()
        _PEAK.write_text("5")  # the peak starts anew from what is held now
        before = _peak_mb()
        _, learner = learner_of(case, recipe, dataset)
        for _ in range(_MEMORY_UPDATES):
            learner.update()
        # The learner holds a copy of the data. The smallest learners fit into what was freed before.
        return max(0.0, _peak_mb() - before - _transitions_mb(dataset))
    _, learner = learner_of(case, recipe, dataset)
    data = torch.cuda.memory_allocated()  # the data and the weights
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # what loading took for a moment is no learner's
    weights = sum(value.nbytes for value in learner.state()["weights"].values())
    while learner.updates < _MEMORY_UPDATES:
        learner.update(_UPDATES)  # launches of as many as are launched at once
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_reserved() - data + weights) / 1e6


def _peak_mb() -> float:
    """Most memory that this process has held, in 10^6 bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _transitions_mb(dataset: Dataset) -> float:
    flat = dataset.episodes
    return (flat.obs.nbytes + flat.actions.nbytes + flat.rewards.nbytes) / 1e6


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _release(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _spread(rate: Rate) -> float:
    """Of the repeats: (fastest - slowest) / median."""
    return (rate.high - rate.low) / rate.median


if __name__ == "__main__":
    _recipe, _task, _seeds, _device, _scale, *_settings = sys.argv[1:]
    print(memory_of(Case(_recipe, _task, int(_seeds), tuple(_settings), _device), Scale(_scale)))
