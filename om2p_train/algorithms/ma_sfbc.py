"""MA-SfBC: selecting from behaviour candidates, for every agent on its own (Chen et al. 2023).

First a diffusion model of the behaviour is learned and then left alone. Then the critic is fitted to returns in rounds:
the first to those of the data, every later one to the best of going on as the data did and of acting anew,

    R_t = r_t + gamma max(R_{t+1}, V_{t+1}),   V(o) = sum_j softmax(sharpness * Q(o, a_j)) Q(o, a_j)

over samples a_j of the behaviour model. The policy draws candidates from the model and takes one by its value.

The critic learns returns moved to [0, 1] by the range of those of the data (our choice: sharpnesses of 20 and 100 mean
nothing without a scale, and on raw returns in the hundreds every choice follows the critic's noise).
"""

from __future__ import annotations

import itertools

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from om2p_data.errors import UserError
from om2p_train.actors import DiffusionActor
from om2p_train.algorithms.base import Algorithm, Noise, Options, Stage
from om2p_train.batches import Batch, Transitions
from om2p_train.diffusion import EARLIEST, ORDER, signal_and_noise
from om2p_train.networks import NetworkConfig
from om2p_train.streams import SeedStreams
from om2p_train.team import Team

# Samples of the behaviour model drawn at once: on an accelerator a few hundred megabytes in its widest layer, on a CPU
# what stays in its caches (larger layers are new memory from the system at every step, which cost half of the time).
_CHUNK_ON_CPU, _CHUNK = 1 << 13, 1 << 18


class MASfBCOptions(Options):
    """Options of MA-SfBC. Symbols are the SfBC paper's."""

    gamma: float = Field(gt=0, lt=1, description="discount")
    behavior_share: float = Field(gt=0, lt=1, description="share of the updates that train the behaviour model")
    rounds: PositiveInt = Field(description="fits of the critic, K in the paper")
    score_hidden: tuple[PositiveInt, ...] = Field(min_length=1, description="widths of the behaviour model's layers")
    time_features: PositiveInt = Field(multiple_of=2, description="size of the embedding of the diffusion time")
    solver_evaluations: PositiveInt = Field(description="of the behaviour model for one sample, a multiple of 3")
    planning_samples: PositiveInt = Field(description="behaviour samples that V is estimated from")
    planning_sharpness: PositiveFloat = Field(description="of the softmax over them")
    candidates: PositiveInt = Field(description="behaviour samples that an action is chosen from")
    sharpness: PositiveFloat = Field(description="of the choice among them")

    @field_validator("solver_evaluations")
    @classmethod
    def _whole_steps(cls, value: int) -> int:
        if value % ORDER:
            raise ValueError(f"the solver takes {ORDER} evaluations a step: a multiple of {ORDER}")
        return value


class MASfBC(Algorithm):
    """L_actor = E || eps_theta(a_t, t | o) - eps ||^2; L_critic = sum_k E (Q_k(o, a) - R)^2."""

    options_type = MASfBCOptions
    returns: Tensor
    lowest: Tensor
    span: Tensor

    def __init__(self, team: Team, config: NetworkConfig, options: MASfBCOptions, streams: SeedStreams):
        super().__init__(team, config, options, streams)
        self.policy = DiffusionActor(
            streams,
            team,
            config,
            score_hidden=list(options.score_hidden),
            time_features=options.time_features,
            solver_evaluations=options.solver_evaluations,
            candidates=options.candidates,
            sharpness=options.sharpness,
        )
        self.actor = self.policy.score
        self.critic = self.policy.critic
        self.register_buffer("returns", torch.empty(0, device=streams.device))  # R in [0, 1], [S, M, N]
        self.register_buffer("lowest", torch.zeros(team.num_agents, device=streams.device))  # return that is 0 there
        self.register_buffer("span", torch.ones(team.num_agents, device=streams.device))

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        agents = self.team.num_agents
        return {
            "eps": streams.normal(agents, batch_size, self.team.act_dim),
            "time": EARLIEST + (1.0 - EARLIEST) * streams.uniform(agents, batch_size, 1),
        }

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        space = self.policy.space
        alpha, sigma = signal_and_noise(noise["time"])
        eps = space.trim(noise["eps"])
        points = alpha * space.encode(batch.actions) + sigma * eps
        error = self.policy.noise_of(batch.obs, points, noise["time"]) - eps
        return space.trim(error).square().sum(-1).mean(-1)

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        seeds = torch.arange(len(batch.rows), device=batch.rows.device).unsqueeze(1)
        target = self.returns[seeds, batch.rows].transpose(1, 2).flatten(0, 1)  # [K, B]
        values = self.critic(batch.obs, batch.actions)
        return (values - target.unsqueeze(1)).square().mean(-1).sum(-1)

    def stages(self, updates: int) -> list[Stage]:
        behavior = round(self.options.behavior_share * updates)
        marks = [
            behavior + (updates - behavior) * index // self.options.rounds for index in range(self.options.rounds + 1)
        ]
        if behavior == 0 or any(begin == end for begin, end in itertools.pairwise(marks)):
            raise UserError(
                f"options.behavior_share = {self.options.behavior_share:g} of run.updates = {updates} leaves none "
                f"for the behaviour, or for one of options.rounds = {self.options.rounds} rounds of the critic"
            )
        fits = [
            Stage(end - begin, critic=True, actor=False, prepare=self._observed if index == 0 else self._planned)
            for index, (begin, end) in enumerate(itertools.pairwise(marks))
        ]
        return [Stage(behavior, critic=False, actor=True), *fits]

    def _observed(self, data: Transitions, streams: SeedStreams) -> None:
        """R of the first round: the data's own discounted returns, the same for every seed."""
        nothing = torch.full((1, *data.rewards.shape), -torch.inf, device=data.rewards.device)
        returns = planned_returns(data, nothing, self._cut_off_value(data), self.options.gamma)
        self.lowest = returns.amin((0, 1))
        span = returns.amax((0, 1)) - self.lowest
        self.span = torch.where(span > 0, span, 1.0)
        self.returns = ((returns - self.lowest) / self.span).expand(len(streams.generators), -1, -1).contiguous()
        self.policy.trust.fill_(1.0)

    @torch.no_grad()
    def _planned(self, data: Transitions, streams: SeedStreams) -> None:
        """R of a later round, from the critic of the round before."""
        seeds, agents = len(streams.generators), self.team.num_agents
        many, size = self.options.planning_samples, self.team.act_dim
        rows = torch.arange(len(data), device=data.obs.device)
        values = []
        at_once = _CHUNK_ON_CPU if data.obs.device.type == "cpu" else _CHUNK
        for chunk in rows.split(max(1, at_once // (many * seeds * agents))):
            obs = data.seen(chunk.expand(seeds, -1), 1)  # [K, b, O]
            actions = self.policy.samples(obs, streams.normal(agents, len(chunk), many, size))
            q = self.critic.of_many(obs, actions).mean(1)  # [K, b, m]
            v = (torch.softmax(self.options.planning_sharpness * q, -1) * q).sum(-1)
            values.append(v.unflatten(0, (seeds, agents)).transpose(1, 2))  # [S, b, N]
        next_value = self.lowest + self.span * torch.cat(values, 1)
        returns = planned_returns(data, next_value, next_value, self.options.gamma)
        self.returns = (returns - self.lowest) / self.span

    def _cut_off_value(self, data: Transitions) -> Tensor:
        """What is taken to follow a step at which time ran out before anything has learned its value, [1, M, N].

        The mean reward for ever: nothing (an end there) would make late actions look bad for being late.
        """
        mean = data.rewards.mean(0) / (1.0 - self.options.gamma)
        return mean.expand(1, len(data), -1)


def planned_returns(data: Transitions, next_value: Tensor, cut_off_value: Tensor, gamma: float) -> Tensor:
    """R_t = r_t + gamma mask_t max(R_{t+1}, V_{t+1}) backwards through every episode, [S, M, N].

    Args:
        data: rewards, masks and where episodes end.
        next_value: V_{t+1}, [S, M, N]; minus infinity where only the data's own return counts.
        cut_off_value: V_{t+1} where nothing follows in the data, [S, M, N].
        gamma: discount.
    """
    ends = torch.nonzero(data.last).squeeze(1)  # [E]
    lengths = torch.diff(ends, prepend=ends.new_tensor([-1]))
    returns = torch.empty_like(next_value)
    after = cut_off_value[:, ends]  # [S, E, N], best value from the next step on
    for back in range(int(lengths.max())):
        running = lengths > back
        rows = ends[running] - back
        value = data.rewards[rows] + gamma * data.mask[rows] * after[:, running]
        returns[:, rows] = value
        more = lengths > back + 1
        earlier = ends[more] - back - 1
        after[:, more] = torch.maximum(returns[:, earlier + 1], next_value[:, earlier])
    return returns
