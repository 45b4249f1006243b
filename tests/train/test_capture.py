"""Recorded updates are the updates: the same numbers, at every stage, whatever is asked for at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from om2p_data.errors import UserError
from om2p_train.batches import Transitions
from om2p_train.capture import CudaGraphs
from om2p_train.learner import Learner
from om2p_train.streams import SAMPLING, SeedStreams

from .learners import RECIPES, load, make_algorithm, make_learner

CUDA = torch.cuda.is_available()
UPDATES = 40


class Rehearsal:
    """Stands in for a device: a launch does the work again, as a graph would, and fills the same tensors."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.launches = 0

    def warm_up(self, work: Callable):
        return work()

    def record(self, work: Callable, generators):
        self.recorded.append(len(generators))
        held: dict[str, torch.Tensor] = {}

        def launch() -> None:
            self.launches += 1
            for name, value in work().items():
                held.setdefault(name, torch.empty_like(value)).copy_(value)

        return launch, held


def recorded_learner(name: str, dataset, graphs, *settings: str, device: str = "cpu"):
    recipe = load(name, *settings, updates=UPDATES)
    algorithm = make_algorithm(name, dataset, [0, 1], *settings, device=device)
    data = Transitions(dataset, device, recipe.data)
    streams = SeedStreams([0, 1], SAMPLING, device)
    return algorithm, Learner(algorithm, data, streams, recipe.optimizer, recipe.run.updates, recipe.compute, graphs)


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_launches_are_the_updates(name, random_dataset):
    plain, learner = make_learner(name, random_dataset, [0, 1], updates=UPDATES)
    last = [learner.update() for _ in range(UPDATES)][-1]
    graphs = Rehearsal()
    launched, fast = recorded_learner(name, random_dataset, graphs, "compute.updates_per_launch=4")
    losses = {}
    while fast.updates < UPDATES:
        losses = fast.update(UPDATES - fast.updates)
    assert graphs.launches < UPDATES / 2
    assert same_weights(plain, launched)
    assert all(torch.equal(losses[key], value) for key, value in last.items())


def test_no_launch_goes_past_what_was_asked_for(random_dataset):
    _, learner = recorded_learner("om2p", random_dataset, Rehearsal(), "compute.updates_per_launch=8")
    taken = []
    for most in (1, 20, 20, 20, 7, 8, 1):
        before = learner.updates
        learner.update(most)
        taken.append(learner.updates - before)
    assert taken == [1, 1, 1, 8, 1, 8, 1]  # three warm up


def test_a_launch_ends_with_its_stage(random_dataset):
    """MA-SfBC: behaviour first, then rounds; every stage is recorded on its own."""
    graphs = Rehearsal()
    algorithm, learner = recorded_learner("ma-sfbc", random_dataset, graphs, "compute.updates_per_launch=1000")
    ends, end = set(), 0
    for stage in algorithm.stages(UPDATES):
        end += stage.updates
        ends.add(end)
    seen = set()
    while learner.updates < UPDATES:
        learner.update(1000)
        seen.add(learner.updates)
    assert ends <= seen
    assert len(graphs.recorded) == len(ends)


def test_going_on_from_a_checkpoint_records_anew(random_dataset):
    whole, first = recorded_learner("om2p", random_dataset, Rehearsal(), "compute.updates_per_launch=4")
    while first.updates < 15:
        first.update(15 - first.updates)
    state = copy.deepcopy(first.state())
    while first.updates < UPDATES:
        first.update(UPDATES - first.updates)
    again, second = recorded_learner("om2p", random_dataset, Rehearsal(), "compute.updates_per_launch=4")
    second.restore(state)
    while second.updates < UPDATES:
        second.update(UPDATES - second.updates)
    assert same_weights(whole, again)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_cuda_graphs_are_the_updates(name, random_dataset):
    plain, eager = recorded_learner(name, random_dataset, None, device="cuda")
    while eager.updates < UPDATES:
        eager.update()
    launched, fast = recorded_learner(name, random_dataset, CudaGraphs(), device="cuda")
    while fast.updates < UPDATES:
        fast.update(UPDATES - fast.updates)
    for one, other in zip(plain.parameters(), launched.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("precision", ["full", "tf32", "bf16"])
def test_a_thousand_recorded_updates_are_a_thousand_single_ones(precision, random_dataset):
    weights = []
    for graphs in (None, CudaGraphs()):
        wanted = (f"compute.precision='{precision}'", "run.updates=1000")
        algorithm, learner = recorded_learner("om2p", random_dataset, graphs, *wanted, device="cuda")
        while learner.updates < 1000:
            learner.update(1000 - learner.updates)
        weights.append(algorithm)
    for one, other in zip(*(algorithm.parameters() for algorithm in weights), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", RECIPES)
def test_products_may_be_cast_to_bf16_as_a_gpu_has_it(name, random_dataset):
    """By autocast: there is none of a GPU here, but the processor's casts the same products."""
    losses = []
    for cast in (False, True):
        _, learner = recorded_learner(name, random_dataset, None, "compute.fused=false")
        with torch.autocast("cpu", torch.bfloat16, enabled=cast, cache_enabled=False):
            losses.append([value for _ in range(5) for value in learner.update().values()])
    for one, other in zip(*losses, strict=True):
        assert other.dtype == torch.float32  # what is made of products is not cast
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)
    assert not all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision_is_set_for_updates_only(precision, random_dataset, monkeypatch):
    _, learner = recorded_learner("om2p", random_dataset, None, f"compute.precision='{precision}'")
    during = []
    real = Transitions.sample

    def sample(*args):
        during.append(torch.get_float32_matmul_precision())
        return real(*args)

    monkeypatch.setattr(Transitions, "sample", sample)
    learner.update()
    assert during == [{"tf32": "high", "bf16": "medium"}[precision]]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_finite_differences_ask_for_full_precision(precision):
    wanted = ("options.derivative='finite-difference'", f"compute.precision='{precision}'")
    with pytest.raises(UserError, match=f"'finite-difference' with compute.precision = '{precision}'"):
        load("om2p", *wanted)
    load("om2p", wanted[0])


def test_unknown_precision_is_refused():
    with pytest.raises(UserError, match=r"compute\.precision = 'fp8' is wrong"):
        load("om2p", "compute.precision='fp8'")
