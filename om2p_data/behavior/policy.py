"""Policies that collect data: networks trained online, uniform actions, and noise on top."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from om2p_data.envs.registry import Task
from om2p_data.errors import UserError
from om2p_data.stacked import Activation, StackedMLP


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Behaviour teams are small: they act and learn a third faster on one thread than on two.

    On a machine that others use too it is a factor of twenty, since each of a dozen tiny products a step waits for the
    thread that has lost its core. The other cores are left to the worlds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Policy(Protocol):
    """Anything that acts for a whole team. Random policies draw from the generator that they are given."""

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Observations float32 [E, N, O] -> actions float32 [E, N, A] in [-1, 1], of discrete tasks one-hot."""
        ...


def _one_hot(choices: np.ndarray, size: int) -> np.ndarray:
    """Integers of any shape -> float32 [..., size]."""
    return np.eye(size, dtype=np.float32)[choices]


class UniformPolicy:
    """Every action uniform in [-1, 1], or over the choices: what "random" means in the published data sets."""

    def __init__(self, task: Task):
        self._shape = (task.num_agents, task.act_dim)
        self._discrete = task.discrete

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        agents, size = self._shape
        if self._discrete:
            return _one_hot(rng.integers(size, size=(len(obs), agents)), size)
        return rng.uniform(-1.0, 1.0, (len(obs), *self._shape)).astype(np.float32)


class TeamActor(nn.Module):
    """Decentralised deterministic actors of one team, stacked: each sees only its own observation.

    Args:
        num_agents, obs_dim, act_dim: N, O, A.
        hidden: widths of the hidden layers.
        generator: source of the initial weights.
        activation: of the hidden layers.
        discrete: the network's outputs are logits of choices, of which the largest is taken; else tanh squashes them.
    """

    def __init__(
        self,
        num_agents: int,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator | None = None,
        activation: Activation = Activation.RELU,
        discrete: bool = False,
    ):
        super().__init__()
        self.hidden = tuple(hidden)
        self.discrete = discrete
        self.net = StackedMLP(num_agents, obs_dim, act_dim, hidden, activation, generator=generator)

    def forward(self, obs: Tensor) -> Tensor:
        """obs [N, B, O] -> actions [N, B, A] in [-1, 1] or one-hot."""
        out = self.net(obs)
        return F.one_hot(out.argmax(-1), out.shape[-1]).to(out.dtype) if self.discrete else torch.tanh(out)

    @torch.no_grad()
    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        del rng  # deterministic
        return self(torch.from_numpy(obs).transpose(0, 1)).transpose(0, 1).contiguous().numpy()

    def rounded(self) -> TeamActor:
        """The same team with weights rounded to the half precision in which `save` stores them."""
        actor = copy.deepcopy(self)
        with torch.no_grad():
            for weight in actor.parameters():
                weight.copy_(weight.half())
        return actor

    def content_hash(self) -> str:
        """SHA-256 of the weights, in the order of their names."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path, task: Task, facts: dict) -> None:
        """Write weights and `facts` (JSON values: how it was trained, what it scores) to one safetensors file.

        Weights are stored in half precision, so judge a team by its `rounded` twin.
        """
        actor = self.rounded()
        card = facts | {
            "task": task.name,
            "hidden": list(self.hidden),
            "activation": self.net.activation.value,
            "hash": actor.content_hash(),
        }
        weights = {name: weight.half() for name, weight in actor.state_dict().items()}
        path.write_bytes(save(weights, metadata={"card": json.dumps(card, sort_keys=True)}))


def between(first: TeamActor, second: TeamActor, share: float) -> TeamActor:
    """The team whose weights are (1 - share) first + share second."""
    actor = copy.deepcopy(second)
    with torch.no_grad():
        for weight, start in zip(actor.parameters(), first.parameters(), strict=True):
            weight.lerp_(start, 1.0 - share)
    return actor


def load_actor(path: Path, task: Task) -> tuple[TeamActor, dict]:
    """Read what `TeamActor.save` wrote.

    Returns:
        The actor and its card.

    Raises:
        UserError: the file is unreadable, belongs to another task, or its weights do not match its card.
    """
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()["card"])
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
        if card["task"] != task.name:
            raise UserError(f"{path} holds a policy for {card['task']}, not for {task.name}")
        actor = TeamActor(
            task.num_agents,
            task.obs_dim,
            task.act_dim,
            card["hidden"],
            activation=Activation(card["activation"]),
            discrete=task.discrete,
        )
        actor.load_state_dict(weights)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read the policy {path}: {error}") from error
    if actor.content_hash() != card["hash"]:
        raise UserError(f"the weights in {path} do not match their recorded hash: the file is damaged")
    return actor, card


def with_noise(policy: Policy, task: Task, amount: float) -> Policy:
    """A team as it collects data: with Gaussian noise of that deviation, or that share of uniform choices."""
    return RandomChoices(policy, amount) if task.discrete else GaussianNoise(policy, amount)


class RandomChoices:
    """A policy each of whose choices is a uniform one with probability epsilon."""

    def __init__(self, policy: Policy, epsilon: float):
        self._policy = policy
        self._epsilon = epsilon

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        actions = self._policy.act(obs, rng)
        other = rng.random(actions.shape[:2]) < self._epsilon
        uniform = _one_hot(rng.integers(actions.shape[-1], size=actions.shape[:2]), actions.shape[-1])
        return np.where(other[..., None], uniform, actions)


class GaussianNoise:
    """A policy whose actions carry N(0, sigma^2) noise and are clipped to [-1, 1]."""

    def __init__(self, policy: Policy, sigma: float):
        self._policy = policy
        self._sigma = sigma

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        actions = self._policy.act(obs, rng)
        noise = rng.standard_normal(actions.shape, dtype=np.float32)
        return np.clip(actions + self._sigma * noise, -1.0, 1.0)
