"""Trained teams as files: weights and a card in safetensors, usable in any PettingZoo loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from om2p_data import tensor_file
from om2p_data.errors import UserError, unknown
from om2p_data.spec import EnvironmentCard, TeamSpec
from om2p_train.actors import ACTORS, Actor
from om2p_train.networks import NetworkConfig
from om2p_train.spaces import from_unit
from om2p_train.streams import EVALUATION, INITIALISATION, SeedStreams
from om2p_train.team import Team


class TeamPolicy:
    """A trained team.

    Args:
        actor: its networks, for one seed.
        environment: what it was trained for; its agents stand in the order of the leading dimension.
        card: where it comes from (task, data set, recipe, seed, updates).
        seed: of the action noise.
    """

    def __init__(self, actor: Actor, environment: EnvironmentCard, card: dict[str, Any], seed: int = 0):
        self.environment = environment
        self.spec = environment.spec
        self.agents = self.spec.agents
        self.card = card
        self.actor = actor
        self._streams = SeedStreams([seed], EVALUATION)

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Actions of every agent.

        Args:
            obs: by agent, [O] or a batch [B, O].

        Returns:
            By agent, float32 [A] or [B, A] within the bounds of its action space; discrete actions int or int64 [B].

        Raises:
            UserError: an agent's observation is missing, has the wrong size or is not finite.
        """
        inputs = torch.from_numpy(stack_observations(self.spec, obs))  # [N, B, O]
        eps = self._streams.normal(*inputs.shape[:2], self.actor.noise_dim)
        actions = from_unit(self.actor.act(inputs, eps).numpy(), self.spec)
        by_agent = dict(zip(self.agents, actions, strict=True))
        if np.ndim(obs[self.agents[0]]) == 2:
            return by_agent
        return {agent: int(a[0]) if self.spec.discrete[0] else a[0] for agent, a in by_agent.items()}


def stack_observations(spec: TeamSpec, obs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Observations by agent, each [O] or [B, O], as float32 [N, B, O], padded to the largest agent.

    Raises:
        UserError: an agent's observation is missing, has the wrong size or is not finite.
    """
    missing = [agent for agent in spec.agents if agent not in obs]
    if missing:
        raise UserError(f"the observation of agent {missing[0]!r} is missing; the team is {', '.join(spec.agents)}")
    arrays = [np.asarray(obs[agent], np.float32) for agent in spec.agents]
    batch = arrays[0].shape[:-1]
    inputs = np.zeros((spec.num_agents, *(batch or (1,)), spec.obs_dim), np.float32)
    for index, (agent, array, size) in enumerate(zip(spec.agents, arrays, spec.obs_dims, strict=True)):
        if array.shape != (*batch, size) or len(batch) > 1:
            wanted = f"({size},) or a batch of them, as the other agents'"
            raise UserError(f"the observation of {agent!r} has shape {array.shape}, not {wanted}")
        if not np.isfinite(array).all():
            raise UserError(f"the observation of {agent!r} holds NaN or infinity")
        inputs[index, :, :size] = array
    return inputs


def save_policy(
    path: Path, actor: Actor, seed_index: int, environment: EnvironmentCard, card: Mapping[str, Any]
) -> None:
    """Write the networks of one seed of a stacked actor.

    Args:
        path: of the safetensors file.
        actor: K = S x N stacked networks.
        seed_index: which seed's.
        environment: of the N agents.
        card: JSON values that say where the policy comes from.
    """
    seeds = len(actor.obs_mean) // environment.spec.num_agents
    weights = {}
    for name, value in actor.state_dict().items():
        size = len(value) // seeds  # every tensor leads with the learners, or with a multiple of them
        weights[name] = value[seed_index * size : (seed_index + 1) * size].contiguous().cpu()
    content = {
        **card,
        "actor": actor.kind,
        "architecture": actor.architecture,
        "environment": environment.to_json(),
    }
    tensor_file.write(path, weights, {"card": json.dumps(content, sort_keys=True)})


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
        raise UserError(f"policy file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        weights, metadata = tensor_file.read(path)
        if "card" not in metadata:
            raise ValueError("it holds no policy; those are in a run's folder `policies`")
        card = json.loads(metadata["card"])
        kind = card["actor"]
        if kind not in ACTORS:
            raise unknown("actor kind", kind, ACTORS)
        own = dict(card["architecture"])
        team, network = (
            Team.from_json(own.pop("team")),
            NetworkConfig.model_validate_json(json.dumps(own.pop("network"))),
        )
        actor = ACTORS[kind](SeedStreams([0], INITIALISATION), team, network, **own)
        actor.load_state_dict(weights)
        actor.requires_grad_(False)
        environment = EnvironmentCard.from_json(card["environment"])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read the policy {path}: {error}") from error
    return TeamPolicy(actor, environment, card, seed)
