"""Networks are made and updated where the device is: nothing goes through the host, and nothing waits for it.

The device is PyTorch's meta device, whose tensors have shapes and no numbers: to read one is an error, as it is while
an accelerator records. Random numbers are drawn by generators of the host there, for want of others.
"""

from __future__ import annotations

import pytest
import torch
from torch.optim import Adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from om2p_train import learner as learning
from om2p_train.batches import Transitions
from om2p_train.learner import Learner
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams

from .learners import DISCRETE, RECIPES, algorithm_of, load

META = torch.device("meta")


class OnDevice(TorchDispatchMode):
    """Raises where an operation takes or makes a tensor of the host; numbers of no dimension are arguments.

    Args:
        drawn_only: whether only random numbers are meant.
    """

    def __init__(self, drawn_only: bool = False):
        super().__init__()
        self._drawn_only = drawn_only

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, made))
        if not self._drawn_only or any(isinstance(value, torch.Generator) for value in leaves):
            host = [value for value in leaves if isinstance(value, torch.Tensor) and value.device != META]
            assert not [value.shape for value in host if value.dim() > 0], func
        return made


def meta_streams(purpose: int) -> SeedStreams:
    streams = SeedStreams([0, 1], purpose)
    streams.device = META
    return streams


@pytest.fixture(autouse=True)
def _adam(monkeypatch):
    # The fused one has no meta kernel.
    monkeypatch.setattr(learning, "_adam", lambda module, rate: Adam(module.parameters(), rate, foreach=True))


@pytest.mark.parametrize("name", RECIPES)
def test_an_update_stays_on_the_device(name, random_dataset):
    check(name, random_dataset)


@pytest.mark.parametrize("name", DISCRETE)
def test_an_update_with_discrete_actions_stays_on_the_device(name, discrete_dataset):
    check(name, discrete_dataset)


def check(name, dataset):
    recipe = load(name, "compute.fused=false", updates=4)
    data = Transitions(dataset, META, recipe.data)
    initialisation, sampling = meta_streams(INITIALISATION), meta_streams(SAMPLING)
    with OnDevice(drawn_only=True):
        algorithm = algorithm_of(recipe, dataset, initialisation)
    learner = Learner(algorithm, data, sampling, recipe.optimizer, 4, recipe.compute)
    for stage in algorithm.stages(4):
        if stage.prepare is not None:
            break  # what prepares a stage is not recorded, and may look at numbers
        learner.update()  # the optimiser makes its state
        with OnDevice():
            for _ in range(stage.updates - 1):
                learner.update()
