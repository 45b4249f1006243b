"""MA-FQL: flow Q-learning for every agent on its own (Park et al. 2025).

Three networks: a flow v(o, x_t, t) that learns the behaviour, a one-step policy pi(o, z) that is distilled from it and
climbs Q, and a twin critic. No gradient runs through the flow's steps.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from om2p_data.stacked import StackedMLP
from om2p_train.actors import NoiseActor, flow_network
from om2p_train.algorithms.base import (
    Algorithm,
    Noise,
    NormalizeQ,
    Options,
    guidance,
    needs_continuous,
    target_of,
    temporal_difference_loss,
)
from om2p_train.batches import Batch
from om2p_train.flows import interpolate
from om2p_train.networks import NetworkConfig, TwinCritic
from om2p_train.streams import SeedStreams
from om2p_train.team import Team


class MAFQLOptions(Options):
    """Options of MA-FQL. Symbols are the FQL paper's."""

    gamma: float = Field(gt=0, lt=1, description="discount")
    alpha: float = Field(ge=0, description="weight of the distillation")
    flow_steps: PositiveInt = Field(description="Euler steps of the flow that is distilled")
    normalize_q: NormalizeQ = Field(description="what the guidance is divided by, so that alpha is free of its scale")


class MAFQL(Algorithm):
    """L_actor = L_flow + alpha E || pi(o, z) - mu(o, z) ||^2 - E[mean_k Q_k(o, clip pi(o, z))]."""

    options_type = MAFQLOptions

    def __init__(self, team: Team, config: NetworkConfig, options: MAFQLOptions, streams: SeedStreams):
        needs_continuous(
            team, "MA-FQL's actor, which climbs Q by its gradient,", "vgm2p, bc-flow, ma-sfbc and ma-cql can"
        )
        super().__init__(team, config, options, streams)
        self.policy = NoiseActor(streams, team, config)
        self.flow: StackedMLP = flow_network(streams, team, config, team.input_dim + 1)
        self.actor = nn.ModuleDict({"flow": self.flow, "one_step": self.policy})
        self.critic = TwinCritic(streams, team, config)
        self.critic_target: TwinCritic = target_of(self.critic)
        self.targets = [(self.critic_target, self.critic)]

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        agents, act_dim = self.team.num_agents, self.team.act_dim
        return {
            "eps": streams.normal(agents, batch_size, act_dim),  # noise end of the flow's path
            "time": streams.uniform(agents, batch_size, 1),
            "z": streams.normal(agents, batch_size, act_dim),  # of the one-step policy
            "z_next": streams.normal(agents, batch_size, act_dim),
        }

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        with torch.no_grad():
            next_actions = self.policy(batch.next_obs, noise["z_next"])
            next_value = self.critic_target(batch.next_obs, next_actions).mean(1)
        values = self.critic(batch.obs, batch.actions)
        return temporal_difference_loss(values, batch, next_value, self.options.gamma)

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        space, options = self.policy.space, self.options
        x_t, velocity = interpolate(batch.actions, space.trim(noise["eps"]), noise["time"])
        v = self.flow(torch.cat([batch.obs, x_t, noise["time"]], -1))
        flow_loss = space.trim(v - velocity).square().mean((1, 2))
        z = space.trim(noise["z"])
        actions = self.policy.raw(batch.obs, z)  # [K, B, A], not clipped: the distillation pulls them back into the box
        distillation = space.trim(actions - self.flow_actions(batch.obs, z)).square().mean((1, 2))
        climbed = guidance(self.critic, space, batch.obs, space.decode(actions), options.normalize_q)
        return flow_loss + options.alpha * distillation - climbed

    @torch.no_grad()
    def flow_actions(self, obs: Tensor, z: Tensor) -> Tensor:
        """mu(o, z): where the flow carries z in Euler steps, clipped, [K, B, A]."""
        x, steps = z, self.options.flow_steps
        for step in range(steps):
            time = torch.full_like(obs[..., :1], step / steps)
            x = x + self.flow(torch.cat([obs, x, time], -1)) / steps
        return self.policy.space.decode(x)
