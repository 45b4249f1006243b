"""OM2P: a mean-flow policy with one-step actions, guided by Q ("Offline Multi-Agent Mean-Flow Policy").

Three presets, each a recipe made of the options below:
om2p            ordered times, exact derivative, adaptive weight (our default);
om2p-paper      the paper's text as float32 executes it: r = 1 - t from one draw, du/dr = 0;
om2p-released   the authors' code: independent times, du/dr = 0, the network's raw output as action, no target actor.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from om2p_data.envs.registry import Task
from om2p_train.algorithms.base import Algorithm, Noise, Options, guidance, target_of, temporal_difference_loss
from om2p_train.batches import Batch
from om2p_train.flows import (
    Derivative,
    TimeDistribution,
    TimePair,
    adaptive_weight,
    check_finite_difference,
    mean_flow,
)
from om2p_train.networks import FlowActor, OneStep, TwinCritic
from om2p_train.streams import SeedStreams


class OM2POptions(Options):
    """Options of OM2P. Symbols are the paper's."""

    hidden: tuple[PositiveInt, ...] = Field(min_length=1)
    gamma: float = Field(gt=0, lt=1)
    eta: float = Field(ge=0, description="weight of the Q guidance, Eq. 6; 0 is flow behaviour cloning")
    normalize_q: bool = Field(description="divide the guidance by the mean size of Q, so that eta is free of its scale")
    xi: tuple[float, float, float, float]
    time_pair: TimePair
    equal_share: float = Field(ge=0, le=1, description="share of r = t among ordered pairs")
    derivative: Derivative
    finite_difference_step: float = Field(gt=0)
    adaptive_power: float = Field(ge=0, le=1, description="p of the adaptive weight; 0 is the plain squared error")
    one_step: OneStep
    target_actor: bool = Field(description="whether the critic's target takes its action from a slowly following actor")

    @model_validator(mode="after")
    def _resolvable_step(self) -> OM2POptions:
        if self.derivative is Derivative.FINITE_DIFFERENCE:
            check_finite_difference(self.finite_difference_step, torch.float32)
        return self


class OM2P(Algorithm):
    """L_actor = L_bc - eta E[mean_k Q_k(o, a~)] (Eq. 6); the critic follows Eq. 7."""

    options_type = OM2POptions
    critic: TwinCritic

    def __init__(self, task: Task, options: OM2POptions, streams: SeedStreams):
        super().__init__(task, options, streams)
        self.options = options
        sizes = (task.num_agents, task.obs_dim, task.act_dim)
        self._noise_shape = (task.num_agents, task.act_dim)
        self.actor = FlowActor(streams, *sizes, options.hidden, options.one_step)
        self.critic = TwinCritic(streams, *sizes, options.hidden)
        self.critic_target: TwinCritic = target_of(self.critic)
        self.targets = [(self.critic_target, self.critic)]
        self.actor_target: FlowActor = self.actor
        if options.target_actor:
            self.actor_target = target_of(self.actor)
            self.targets.append((self.actor_target, self.actor))
        self._times = TimeDistribution(options.xi, streams.device)

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        agents, act_dim = self._noise_shape
        options = self.options
        return {
            "eps": streams.normal(agents, batch_size, act_dim),  # noise end of the flow path
            "eps_policy": streams.normal(agents, batch_size, act_dim),  # of the guided action
            "eps_next": streams.normal(agents, batch_size, act_dim),  # of the critic's next action
            "times": options.time_pair.sample(self._times, options.equal_share, streams, agents, batch_size),
        }

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        with torch.no_grad():
            next_actions = self.actor_target.act(batch.next_obs, noise["eps_next"])
            next_value = self.critic_target(batch.next_obs, next_actions).mean(1)  # [K, B]: the mean, not the minimum
        values = self.critic(batch.obs, batch.actions)
        return temporal_difference_loss(values, batch, next_value, self.options.gamma)

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        options = self.options
        u, target = mean_flow(
            self.actor.net,
            batch.obs,
            batch.actions,
            noise["eps"],
            noise["times"],
            options.derivative,
            options.finite_difference_step,
        )
        square = (u - target.detach()).square().sum(-1)  # [K, B]
        if options.adaptive_power > 0:
            square = square * adaptive_weight(square, options.adaptive_power)
        loss = square.mean(-1)
        if options.eta > 0:
            actions = self.actor.act(batch.obs, noise["eps_policy"])
            loss = loss - options.eta * guidance(self.critic(batch.obs, actions), options.normalize_q)
        return loss
