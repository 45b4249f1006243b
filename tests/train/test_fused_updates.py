"""Updates through the CPU's kernels are the plain updates, for every recipe, up to rounding."""

from __future__ import annotations

import pytest
import torch

from om2p_data.stacked import StackedMLP
from om2p_train.batches import Transitions
from om2p_train.compute import ComputeConfig, Precision
from om2p_train.learner import Learner
from om2p_train.streams import SAMPLING, SeedStreams

from .learners import RECIPES, load, make_algorithm

UPDATES = 12  # of which MA-SfBC gives half to its behaviour model


def trained(name: str, dataset, fused: bool):
    recipe = load(name, updates=UPDATES)
    algorithm = make_algorithm(name, dataset, [0, 1])
    # With Adam's usual step a gradient that is 0 but for rounding moves its weight as far as any other.
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": 1e-5, "critic_learning_rate": None})
    data = Transitions(dataset, config=recipe.data)
    learner = Learner(algorithm, data, SeedStreams([0, 1], SAMPLING), optimizer, UPDATES, ComputeConfig(fused=fused))
    return algorithm, [learner.update() for _ in range(UPDATES)]


@pytest.mark.parametrize("name", RECIPES)
def test_updates_are_the_plain_ones(name, random_dataset):
    plain, plain_losses = trained(name, random_dataset, fused=False)
    fused, fused_losses = trained(name, random_dataset, fused=True)
    assert all(part.kernels is not None for part in fused.modules() if isinstance(part, StackedMLP))
    assert all(part.kernels is None for part in plain.modules() if isinstance(part, StackedMLP))
    for one, other in zip(fused_losses, plain_losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for (key, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, msg=lambda message, key=key: f"{key}: {message}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"fused": False}, False),
        ({"precision": Precision.BF16}, False),
        ({"compile": True}, False),
    ],
)
def test_when_updates_go_through_the_kernels(settings, expected):
    compute = ComputeConfig(**settings)
    assert compute.fuses_on(torch.device("cpu")) is expected
    assert not compute.fuses_on(torch.device("cuda"))
