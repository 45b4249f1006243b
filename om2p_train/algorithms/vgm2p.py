"""VGM2P, reconstructed: value-guided multi-agent mean-flow policies (2026).

Its code is not published; abstract and results are. What they state: a global advantage guides the behaviour cloning
of every agent, which is conditional and free of a classifier; mean flow acts in one step; no gradient of Q runs through
the policy; actions are discrete or continuous. The rest is our reconstruction:

- values as in implicit Q-learning (Kostrikov et al. 2022), summed over the team: Q_tot = sum_i Q_i(o_i, a_i) and
  V_tot = sum_i V_i(o_i), an expectile of Q_tot, both of the team's reward;
- the condition of a transition is c = 1[A >= 0], A = Q_tot - V_tot, the same for all agents, and dropped now and then;
- the mean flow follows the guided velocity w v + (1 - w) u(a_r, r, r | no condition) (Geng et al. 2025);
- agents act under c = 1. A choice is a corner of a cube, and the largest component is taken.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from om2p_train.actors import ConditionalFlowActor
from om2p_train.algorithms.base import Algorithm, Noise, Options, target_of
from om2p_train.batches import Batch
from om2p_train.flows import Derivative, TimeDistribution, TimePair, adaptive_weight, mean_flow
from om2p_train.networks import NetworkConfig, StateValue, TwinCritic
from om2p_train.streams import SeedStreams
from om2p_train.team import Team

_UNIFORM = (0.0, 0.0, 0.0, 0.0)
_NO_STEP = 1.0  # of the finite difference, which the exact derivative has no use for


class VGM2POptions(Options):
    """Options of VGM2P."""

    gamma: float = Field(gt=0, lt=1, description="discount")
    expectile: float = Field(ge=0.5, lt=1, description="of V_tot among Q_tot; 0.5 is the mean")
    guidance: float = Field(ge=1, description="w; 1 follows the condition without going beyond it")
    drop_probability: float = Field(gt=0, lt=1, description="share of transitions whose condition is dropped")
    equal_share: float = Field(ge=0, le=1, description="share of r = t")
    adaptive_power: float = Field(ge=0, le=1, description="p of the adaptive weight; 0 is the plain squared error")


class VGM2P(Algorithm):
    """One loss a team for the values (they are summed), one an agent for the policy."""

    options_type = VGM2POptions

    def __init__(self, team: Team, config: NetworkConfig, options: VGM2POptions, streams: SeedStreams):
        super().__init__(team, config, options, streams)
        self.policy = self.actor = ConditionalFlowActor(streams, team, config)
        self.q = TwinCritic(streams, team, config)
        self.v = StateValue(streams, team, config)
        self.critic = nn.ModuleDict({"q": self.q, "v": self.v})
        self.q_target: TwinCritic = target_of(self.q)
        self.targets = [(self.q_target, self.q)]
        self._times = TimeDistribution(_UNIFORM, streams.device)

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        agents, options = self.team.num_agents, self.options
        return {
            "eps": streams.normal(agents, batch_size, self.team.act_dim),
            "drop": streams.uniform(1, batch_size),
            "times": TimePair.ORDERED.sample(self._times, options.equal_share, streams, agents, batch_size),
        }

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        options = self.options
        v_tot = self._total(self.v(batch.obs))  # [S, B]
        with torch.no_grad():
            target_q = self._total_q(self.q_target, batch)  # [S, B]
            # An agent that terminated has no value left, the others have theirs.
            next_v = self._total(batch.mask * self.v(batch.next_obs))
            target = self._total(batch.rewards) / self.team.num_agents + options.gamma * next_v
        above = target_q - v_tot
        weight = torch.where(above.detach() > 0, options.expectile, 1.0 - options.expectile)
        v_loss = (weight * above.square()).mean(-1)  # [S]
        q_tot = self._total(self.q(batch.obs, batch.actions))  # [S, 2, B]
        q_loss = (q_tot - target.unsqueeze(1)).square().mean(-1).sum(-1)
        # Each agent carries an equal part of its team's loss.
        return ((v_loss + q_loss) / self.team.num_agents).repeat_interleave(self.team.num_agents)

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        options, space = self.options, self.policy.space
        good = self.good(batch).float()  # [S, B]
        kept = (noise["drop"] >= options.drop_probability).float()
        condition = torch.stack([(1.0 - good) * kept, good * kept], -1)  # [S, B, 2]
        condition = condition.repeat_interleave(self.team.num_agents, 0)  # [K, B, 2]
        guided = kept.repeat_interleave(self.team.num_agents, 0).unsqueeze(-1)

        @torch.no_grad()
        def guide(a_r: Tensor, r: Tensor, velocity: Tensor) -> Tensor:
            if options.guidance == 1:
                return velocity
            free = self.actor.net(torch.cat([batch.obs, torch.zeros_like(condition), a_r, r, r], -1))
            return velocity + guided * (1.0 - options.guidance) * (space.trim(free) - velocity)

        u, target = mean_flow(
            self.actor.net,
            torch.cat([batch.obs, condition], -1),
            space.encode(batch.actions),
            space.trim(noise["eps"]),
            noise["times"],
            Derivative.EXACT,
            _NO_STEP,
            guide,
        )
        square = space.trim(u - target.detach()).square().sum(-1)  # [K, B]
        if options.adaptive_power > 0:
            square = square * adaptive_weight(square, options.adaptive_power)
        return square.mean(-1)

    @torch.no_grad()
    def good(self, batch: Batch) -> Tensor:
        """1[A >= 0] of every transition, [S, B]."""
        return self._total_q(self.q_target, batch) >= self._total(self.v(batch.obs))

    def _total(self, values: Tensor) -> Tensor:
        """Sum over the agents of every team, [K, ...] -> [S, ...]."""
        return values.unflatten(0, (-1, self.team.num_agents)).sum(1)

    def _total_q(self, critic: TwinCritic, batch: Batch) -> Tensor:
        """The smaller of the two totals, [S, B]."""
        return self._total(critic(batch.obs, batch.actions)).amin(1)
