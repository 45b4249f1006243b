"""Algorithms and learners made from recipes, small enough for tests, and the networks once more in float64."""

from __future__ import annotations

import math

import numpy as np

from om2p_data.dataset import Dataset
from om2p_data.recipe import bundled
from om2p_train import algorithms, config
from om2p_train.algorithms import Algorithm
from om2p_train.batches import Batch, Transitions
from om2p_train.learner import Learner
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams
from om2p_train.team import Team

RECIPES = bundled("train")
DISCRETE = [name for name in RECIPES if name.startswith(("bc", "ma-cql", "ma-sfbc", "vgm2p", "om2p-paper-only-bc"))]

_SMALL = ["network.hidden=[16,16]", "optimizer.batch_size=8"]
_SMALL_OF = {
    # The policy is the network that learns: tests of what acts otherwise ask for it.
    "om2p": ["options.candidates=1", "options.noise_scale=1.0", "options.averaged=false"],
    "ma-sfbc": [
        "options.behavior_share=0.5",
        "options.score_hidden=[16,16]",
        "options.candidates=3",
        "options.solver_evaluations=3",
    ],
}


def load(name: str, *settings: str, updates: int = 100) -> config.TrainRecipe:
    """A recipe with networks and batches that suit a test."""
    small = [*_SMALL, *(line for prefix, lines in _SMALL_OF.items() if name.startswith(prefix) for line in lines)]
    return config.load(name, "toy", None, settings=[*small, f"run.updates={updates}", *settings])


def make_algorithm(name: str, dataset: Dataset, seeds: list[int], *settings: str, device: str = "cpu") -> Algorithm:
    return algorithm_of(load(name, *settings), dataset, SeedStreams(seeds, INITIALISATION, device))


def algorithm_of(recipe: config.TrainRecipe, dataset: Dataset, streams: SeedStreams) -> Algorithm:
    teams = recipe.data.behavior_teams
    team = Team.of(dataset.environment.spec, teams if isinstance(teams, int) else 0)
    return algorithms.find(recipe.algorithm)(team, recipe.network, recipe.options, streams)


def make_learner(
    name: str, dataset: Dataset, seeds: list[int], *settings: str, updates: int = 100
) -> tuple[Algorithm, Learner]:
    recipe = load(name, *settings, updates=updates)
    algorithm = make_algorithm(name, dataset, seeds, *settings)
    data = Transitions(dataset, config=recipe.data)
    return algorithm, Learner(algorithm, data, SeedStreams(seeds, SAMPLING), recipe.optimizer, updates)


def train(name: str, dataset: Dataset, seeds: list[int], updates: int, *settings: str) -> Algorithm:
    algorithm, learner = make_learner(name, dataset, seeds, *settings, updates=updates)
    for _ in range(updates):
        learner.update()
    return algorithm


def one_batch(name: str, dataset: Dataset, seeds: list[int], *settings: str) -> tuple[Algorithm, Batch, dict]:
    """An algorithm whose stages are prepared, a batch of 8 and its noise."""
    algorithm = make_algorithm(name, dataset, seeds, *settings)
    streams = SeedStreams(seeds, SAMPLING)
    data = Transitions(dataset)
    for stage in algorithm.stages(100):
        if stage.prepare is not None:
            stage.prepare(data, streams)
    return algorithm, data.sample(streams, 8), algorithm.draw(streams, 8)


def rows_of(parameter, learners: int):
    """Size of the gradient of every learner, [K]; critics have two rows a learner."""
    return parameter.grad.reshape(learners, -1).abs().sum(1)


class Reference:
    """One network of a stack in numpy float64: affine maps, activation, layer norm after it."""

    def __init__(self, module, stack_index: int):
        def numbers(layer):
            return layer.weight[stack_index].detach().double().numpy(), layer.bias[
                stack_index
            ].detach().double().numpy()

        self._layers = [numbers(layer) for layer in [*module.hidden_layers, module.output_layer]]
        self._norms = module.norms and [numbers(norm) for norm in module.norms]

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        x = np.concatenate(inputs, -1)
        *hidden, last = self._layers
        for index, (weight, bias) in enumerate(hidden):
            x = gelu(x @ weight + bias)
            if self._norms:
                scale, shift = self._norms[index]
                centred = x - x.mean(-1, keepdims=True)
                x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift
        return x @ last[0] + last[1]


def gelu(z: np.ndarray) -> np.ndarray:
    return z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def numpy64(tensors, k: int) -> dict[str, np.ndarray]:
    """Row k of every tensor of a batch or of its noise."""
    items = tensors._asdict() if hasattr(tensors, "_asdict") else tensors
    return {name: value[k].double().numpy() for name, value in items.items() if k < len(value)}
