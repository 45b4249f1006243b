"""Who the predators chase. The prey is part of the world: the same one collects data and scores policies.

The prey of the published benchmarks was a pretrained network, whose weights are lost. Ours was trained together with
three predators (`om2p_data.behavior.prey`) and frozen when uniformly random predators scored against it what is
published (-4.1 in Predator-Prey, -6.8 in World); it ships with the package.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numba import njit, prange
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from om2p_data.envs.particle.physics import BATCH_KERNEL
from om2p_data.errors import UserError

_LAYERS = 3


class Prey(Protocol):
    """A deterministic policy of the prey.

    Attributes:
        identity: name and version, written into every data set and result that was made with this prey.
    """

    identity: str

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Prey observations [E, 14 or 22] -> actions [E, 2] in [-1, 1]."""
        ...


@njit(**BATCH_KERNEL)
def _forward(obs, w1, b1, w2, b2, w3, b3, out):
    # Sums run over inputs one by one, so that the result of a world depends neither on the batch nor on the threads,
    # and the inner loops over outputs still use the processor's vectors.
    for e in prange(len(obs)):
        first = b1.copy()
        for i in range(len(w1)):
            x = obs[e, i]
            for j in range(len(first)):
                first[j] += x * w1[i, j]
        second = b2.copy()
        for i in range(len(w2)):
            x = max(first[i], np.float32(0.0))
            for j in range(len(second)):
                second[j] += x * w2[i, j]
        for c in range(2):
            total = b3[c]
            for i in range(len(w3)):
                total += max(second[i], np.float32(0.0)) * w3[i, c]
            out[e, c] = math.tanh(total)


class NetworkPrey:
    """A frozen network: two hidden layers of ReLUs, and tanh.

    Args:
        weights: float32 arrays `weight_1` [O, H], `bias_1` [H], `weight_2` [H, H], `bias_2` [H], `weight_3` [H, 2] and
            `bias_3` [2]; rounded to the half precision in which they are stored.
        name: what its identity starts with.
    """

    def __init__(self, weights: dict[str, np.ndarray], name: str):
        self._weights = {key: np.ascontiguousarray(value.astype(np.float16)) for key, value in weights.items()}
        order = (self._weights[f"{kind}_{layer}"] for layer in range(1, _LAYERS + 1) for kind in ("weight", "bias"))
        self._arrays = tuple(value.astype(np.float32) for value in order)
        digest = hashlib.sha256()
        for array in self._arrays:
            digest.update(array.tobytes())
        self.identity = f"{name}-{digest.hexdigest()[:12]}"

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Prey observations [E, O] -> actions float32 [E, 2] in [-1, 1].

        Raises:
            UserError: observations of another world than the one it was trained in.
        """
        if obs.shape[1] != len(self._arrays[0]):  # the compiled loop would read beyond them
            raise UserError(f"prey {self.identity} sees {len(self._arrays[0])} numbers, not {obs.shape[1]}")
        actions = np.empty((len(obs), 2), np.float32)
        _forward(np.asarray(obs, np.float32), *self._arrays, actions)  # pyright: ignore[reportCallIssue]
        return actions

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the weights and `facts` (JSON values: how it was trained, what was measured) to a safetensors file."""
        card = facts | {"identity": self.identity}
        path.write_bytes(save(self._weights, metadata={"card": json.dumps(card, sort_keys=True)}))


def load_prey(path: Path, name: str) -> tuple[NetworkPrey, dict[str, Any]]:
    """Read what `NetworkPrey.save` wrote.

    Returns:
        The prey and its card.

    Raises:
        UserError: the file cannot be read, or its weights are not those that its card names.
    """
    try:
        with safe_open(path, framework="np") as file:
            card = json.loads(file.metadata()["card"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        prey = NetworkPrey(weights, name)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"prey {path} cannot be read: {error}") from error
    if prey.identity != card.get("identity"):
        raise UserError(f"prey {path} is damaged: it is {prey.identity}, its card says {card.get('identity')}")
    return prey, card


@cache
def bundled_prey(name: str) -> NetworkPrey:
    """A frozen prey that ships with the package, by its name: that of the task that it was trained in."""
    file = resources.files("om2p_data.envs.particle").joinpath("preys", f"{name}.safetensors")
    with resources.as_file(file) as path:
        return load_prey(path, name)[0]
