"""What an update should cost at least: its arithmetic, then its memory traffic, at the rates this machine reaches.

Counted are products of matrices, nearly all of the arithmetic, and what optimiser and target averaging must read and
write. Activations are not: they can stay in a cache. Small networks' weights can, too, so for them it is an estimate.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from om2p_data.dataset import Dataset
from om2p_train.bench.cases import Case, learner_of
from om2p_train.compute import Precision
from om2p_train.config import TrainRecipe

_FLOAT = 4  # bytes
_ADAM = 7  # floats a weight: weight, gradient and two moments are read, all but the gradient written
_AVERAGE = 3  # floats a target's weight: it and its source are read, it is written
_REPEATS = 15
_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices that show how fast products can be
_COPIED = {"cpu": 2**25, "cuda": 2**28}  # floats: more than caches hold


@dataclass(frozen=True)
class Work:
    """One update's: floating-point operations in products, and bytes that weights and moments move."""

    flops: float
    moved: float


@dataclass(frozen=True)
class Machine:
    """What this machine reaches: operations a second in a large product, bytes a second read and written in a copy."""

    flops: float
    moved: float

    def milliseconds(self, work: Work) -> float:
        """The least time of an update."""
        return 1e3 * (work.flops / self.flops + work.moved / self.moved)


def work_of(case: Case, recipe: TrainRecipe, dataset: Dataset) -> Work:
    """Counts one update of the recipe; for a run of several stages, one of the first."""
    # The counter sees PyTorch's own operations only.
    plain = recipe.compute.model_copy(update={"fused": False, "compile": False})
    one_by_one = dataclasses.replace(case, graphs=False)
    algorithm, learner = learner_of(one_by_one, dataclasses.replace(recipe, compute=plain), dataset)
    learner.update()
    with FlopCounterMode(display=False) as counter:
        learner.update()
    moved = {id(weight): weight.numel() for weight in algorithm.parameters() if weight.grad is not None}
    followed = sum(weight.numel() for target, _ in algorithm.targets for weight in target.parameters())
    return Work(counter.get_total_flops(), _FLOAT * (_ADAM * sum(moved.values()) + _AVERAGE * followed))


def measure(device: str, precision: Precision) -> Machine:
    """Rates of this machine's device, on as many threads as PyTorch has."""
    kind = torch.device(device).type
    side, copied = _SIDE[kind], _COPIED[kind]
    half = precision is Precision.BF16 and kind == "cuda"
    a, b = torch.randn(2, side, side, device=device).to(torch.bfloat16 if half else torch.float32)
    product = torch.empty_like(a)
    with precision.of_products(torch.device(device)):
        flops = 2 * side**3 / _seconds(lambda: torch.mm(a, b, out=product), device)
    source = torch.ones(copied, device=device)
    target = torch.empty_like(source)
    return Machine(flops, 2 * _FLOAT * copied / _seconds(lambda: target.copy_(source), device))


def _seconds(work: Callable[[], object], device: str) -> float:
    """Median time, after a warm-up."""
    times = []
    for _ in range(_REPEATS + 2):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])
