"""Trained teams as files: weights and a card in safetensors, usable in any PettingZoo loop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from om2p_data.errors import UserError, unknown
from om2p_train.networks import ACTORS, Actor
from om2p_train.streams import EVALUATION, INITIALISATION, SeedStreams


class TeamPolicy:
    """A trained team.

    Args:
        actor: its networks, for one seed.
        agents: names of the agents, in the order of the leading dimension.
        card: where it comes from (task, data set, recipe, seed, updates).
        seed: of the action noise.
    """

    def __init__(self, actor: Actor, agents: Sequence[str], card: dict[str, Any], seed: int = 0):
        self.agents = tuple(agents)
        self.card = card
        self._actor = actor
        self._streams = SeedStreams([seed], EVALUATION)
        self._act_dim = int(actor.architecture["act_dim"])

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Actions of every agent.

        Args:
            obs: by agent, [O] or a batch [B, O].

        Returns:
            By agent, float32 [A] or [B, A], in [-1, 1].

        Raises:
            UserError: an agent's observation is missing or has the wrong size.
        """
        missing = [agent for agent in self.agents if agent not in obs]
        if missing:
            raise UserError(f"the observation of agent {missing[0]!r} is missing; the team is {', '.join(self.agents)}")
        arrays = [np.atleast_2d(np.asarray(obs[agent], np.float32)) for agent in self.agents]
        size = self._actor.architecture["obs_dim"]
        for agent, array in zip(self.agents, arrays, strict=True):
            if array.shape[-1] != size:
                raise UserError(f"the observation of {agent!r} must have {size} numbers, not {array.shape[-1]}")
        inputs = torch.from_numpy(np.stack(arrays))  # [N, B, O]
        eps = self._streams.normal(*inputs.shape[:2], self._act_dim)
        actions = self._actor.act(inputs, eps).numpy()
        single = np.ndim(obs[self.agents[0]]) == 1
        return {agent: (a[0] if single else a) for agent, a in zip(self.agents, actions, strict=True)}


def save_policy(path: Path, actor: Actor, seed_index: int, agents: Sequence[str], card: Mapping[str, Any]) -> None:
    """Write the networks of one seed of a stacked actor.

    Args:
        path: of the safetensors file.
        actor: K = S x N stacked networks.
        seed_index: which seed's.
        agents: names of the N agents.
        card: JSON values that say where the policy comes from.
    """
    rows = slice(seed_index * len(agents), (seed_index + 1) * len(agents))
    weights = {name: value[rows].contiguous().cpu() for name, value in actor.state_dict().items()}
    content = {**card, "actor": actor.kind, "architecture": actor.architecture, "agents": list(agents)}
    save_file(weights, path, metadata={"card": json.dumps(content, sort_keys=True)})


def load_policy(path: str | Path, seed: int = 0) -> TeamPolicy:
    """Read a trained team; nothing of the training code is needed to use it.

    Args:
        path: a file in a run's `policies` folder.
        seed: of the action noise.

    Raises:
        UserError: the file is missing or not a policy of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"policy file {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()["card"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        kind = card["actor"]
        if kind not in ACTORS:
            raise unknown("actor kind", kind, ACTORS)
        actor = ACTORS[kind](SeedStreams([0], INITIALISATION), **card["architecture"])
        actor.load_state_dict(weights)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read the policy {path}: {error}") from error
    return TeamPolicy(actor, card["agents"], card, seed)
