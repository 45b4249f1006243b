"""OM2P: a mean-flow policy with one-step actions, guided by Q ("Offline Multi-Agent Mean-Flow Policy").

Three presets, each a recipe made of the options below:
om2p            ordered times, exact derivative; acts with the best of several candidates (default);
om2p-paper      the paper's text as float32 executes it: r = 1 - t from one draw, du/dr = 0;
om2p-released   the authors' code: independent times, du/dr = 0, the network's raw output as action, no target actor.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from om2p_data.errors import UserError
from om2p_train.actors import BestOfFlowActor, FlowActor, OneStep
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
from om2p_train.compute import Precision
from om2p_train.flows import (
    Derivative,
    TimeDistribution,
    TimePair,
    adaptive_weight,
    check_finite_difference,
    mean_flow,
)
from om2p_train.networks import NetworkConfig, TwinCritic
from om2p_train.streams import SeedStreams
from om2p_train.team import Team


class OM2POptions(Options):
    """Options of OM2P. Symbols are the paper's."""

    gamma: float = Field(gt=0, lt=1, description="discount")
    bc_weight: float = Field(default=1.0, ge=0, description="weight of L_bc; 0 leaves Q alone, the paper's ablation")
    eta: float = Field(ge=0, description="weight of the Q guidance, Eq. 6; 0 is flow behaviour cloning")
    normalize_q: NormalizeQ = Field(description="what the guidance is divided by, so that eta is free of its scale")
    xi: tuple[float, float, float, float] = Field(description="shape of the distribution of times, Eq. 4")
    time_pair: TimePair = Field(description="how r and t are drawn from it")
    equal_share: float = Field(ge=0, le=1, description="share of r = t among ordered pairs")
    derivative: Derivative = Field(description="how du/dr of Eq. 2 is computed")
    finite_difference_step: float = Field(gt=0, description="of that derivative alone")
    adaptive_power: float = Field(ge=0, le=1, description="p of the adaptive weight; 0 is the plain squared error")
    one_step: OneStep = Field(description="what is clipped to be the action; Eq. 3 has eps+u")
    candidates: PositiveInt = Field(description="one-step actions drawn to act, of which the one of highest Q is taken")
    noise_scale: float = Field(ge=0, description="of the noise where the policy acts; 0: the middle of what it learned")
    averaged: bool = Field(description="whether the slowly following networks act, instead of those that learn")
    target_actor: bool = Field(description="whether the critic's target takes its action from a slowly following actor")

    @model_validator(mode="after")
    def _sensible(self) -> OM2POptions:
        if self.derivative is Derivative.FINITE_DIFFERENCE:
            check_finite_difference(self.finite_difference_step, torch.float32)
        TimeDistribution(self.xi)  # refuses numbers that make no density
        if self.bc_weight == 0 and self.eta == 0:
            raise ValueError("bc_weight and eta are both 0: nothing would train the actor")
        return self

    def check(self, precision: Precision) -> None:
        if self.derivative is Derivative.FINITE_DIFFERENCE and precision is not Precision.FULL:
            raise UserError(
                f"options.derivative = 'finite-difference' with compute.precision = {precision.value!r}: rounding is "
                "as large as the step, so the derivative means nothing; use derivative = 'exact', or precision = 'full'"
            )


class OM2P(Algorithm):
    """L_actor = L_bc - eta E[mean_k Q_k(o, a~)] (Eq. 6); the critic follows Eq. 7."""

    options_type = OM2POptions

    def __init__(self, team: Team, config: NetworkConfig, options: OM2POptions, streams: SeedStreams):
        super().__init__(team, config, options, streams)
        if options.eta > 0:
            needs_continuous(
                team, "OM2P's guidance, a gradient of Q by the action,", "vgm2p, bc-flow, ma-sfbc and ma-cql can"
            )
        acting = (streams, team, config, options.one_step)
        if options.candidates > 1:
            self.policy = BestOfFlowActor(*acting, options.candidates, options.noise_scale)
            self.actor, self.critic = self.policy.flow, self.policy.critic
        else:
            self.policy = self.actor = FlowActor(*acting, options.noise_scale)
            if options.eta > 0:
                self.critic = TwinCritic(streams, team, config)
        self.actor_target: FlowActor = self.actor
        if options.averaged or (options.target_actor and self.critic is not None):
            self.actor_target = target_of(self.actor)
            self.targets.append((self.actor_target, self.actor))
        if self.critic is not None:
            self.critic_target: TwinCritic = target_of(self.critic)
            self.targets.append((self.critic_target, self.critic))
        if options.averaged and isinstance(self.policy, BestOfFlowActor):
            self.policy.flow, self.policy.critic = self.actor_target, self.critic_target
        elif options.averaged:
            self.policy = self.actor_target
        self._times = TimeDistribution(options.xi, streams.device)

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        agents, act_dim = self.team.num_agents, self.team.act_dim
        options = self.options
        return {
            "eps": streams.normal(agents, batch_size, act_dim),  # noise end of the flow path
            "eps_policy": streams.normal(agents, batch_size, act_dim),  # of the guided action
            "eps_next": streams.normal(agents, batch_size, act_dim),  # of the critic's next action
            "times": options.time_pair.sample(self._times, options.equal_share, streams, agents, batch_size),
        }

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        with torch.no_grad():
            actor = self.actor_target if self.options.target_actor else self.actor
            next_actions = actor(batch.next_obs, noise["eps_next"])
            next_value = self.critic_target(batch.next_obs, next_actions).mean(1)  # [K, B]: the mean, not the minimum
        values = self.critic(batch.obs, batch.actions)
        return temporal_difference_loss(values, batch, next_value, self.options.gamma)

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        options = self.options
        loss = torch.zeros_like(batch.rewards[:, 0])
        if options.bc_weight > 0:
            loss = options.bc_weight * self._behavior_loss(batch, noise)
        if options.eta > 0:
            actions = self.actor(batch.obs, noise["eps_policy"])
            loss = loss - guidance(self.critic, self.actor.space, batch.obs, actions, options.normalize_q, options.eta)
        return loss

    def _behavior_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """L_bc, Eq. 2, [K]."""
        options, space = self.options, self.policy.space
        u, target = mean_flow(
            self.actor.net,
            batch.obs,
            space.encode(batch.actions),
            space.trim(noise["eps"]),
            noise["times"],
            options.derivative,
            options.finite_difference_step,
        )
        square = space.trim(u - target.detach()).square().sum(-1)  # [K, B]
        if options.adaptive_power > 0:
            square = square * adaptive_weight(square, options.adaptive_power)
        return square.mean(-1)
