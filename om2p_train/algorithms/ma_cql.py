"""MA-CQL: conservative Q-learning for every agent on its own (Kumar et al. 2020; Pan et al. 2022, the OMAR paper).

Independent TD3 critics (the minimum of two targets, the target policy's action, no smoothing noise) whose values are
pushed down wherever the data have no actions:

    alpha (log sum_a exp Q(o, a) - Q(o, a_data)).

Continuous actions: the integral is estimated from sampled actions with importance weights, and an actor climbs Q_1.
Discrete actions: the sum is exact, and the policy is the choice of the highest value.
"""

from __future__ import annotations

import enum
import math

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from om2p_train.actors import DeterministicActor, GreedyActor
from om2p_train.algorithms.base import Algorithm, Noise, Options, target_of, temporal_difference_loss
from om2p_train.batches import Batch
from om2p_train.networks import NetworkConfig, TwinCritic
from om2p_train.streams import SeedStreams
from om2p_train.team import Team


class Proposal(enum.Enum):
    """Where the actions come from whose values are pushed down."""

    UNIFORM = "uniform"  # the box alone: OMAR's particle worlds
    POLICY = "uniform+policy"  # and Gaussians around the policy's actions for o and for o': its HalfCheetah


class MACQLOptions(Options):
    """Options of MA-CQL. Symbols are the OMAR paper's."""

    gamma: float = Field(gt=0, lt=1, description="discount")
    alpha: float = Field(ge=0, description="weight of the conservative term; 0 is independent TD3")
    proposal: Proposal = Field(description="where the actions come from whose values are pushed down")
    num_sampled_actions: PositiveInt = Field(description="of each kind of proposal")
    proposal_sigma: float = Field(gt=0, description="standard deviation of the Gaussians around the policy's actions")
    action_cost: float = Field(ge=0, description="weight of the mean squared action in the actor's loss")
    saturation_cost: float = Field(ge=0, description="weight of the mean squared input of the actor's tanh in its loss")


class MACQL(Algorithm):
    """Independent TD3 with a conservative critic."""

    options_type = MACQLOptions

    def __init__(self, team: Team, config: NetworkConfig, options: MACQLOptions, streams: SeedStreams):
        super().__init__(team, config, options, streams)
        if team.discrete:
            self.policy = GreedyActor(streams, team, config)
            self.critic = self.policy.critic
            self.policy_target: GreedyActor | DeterministicActor = target_of(self.policy)
            self.targets = [(self.policy_target, self.policy)]
            return
        self.policy = self.actor = DeterministicActor(streams, team, config)
        self.critic = TwinCritic(streams, team, config)
        self.policy_target = target_of(self.actor)
        self.critic_target: TwinCritic = target_of(self.critic)
        self.targets = [(self.critic_target, self.critic), (self.policy_target, self.actor)]

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        if self.team.discrete:
            return {}
        shape = (self.team.num_agents, batch_size, self.options.num_sampled_actions, self.team.act_dim)
        noise = {"uniform": 2.0 * streams.uniform(*shape) - 1.0}
        if self.options.proposal is Proposal.POLICY:
            noise |= {"around": streams.normal(*shape), "around_next": streams.normal(*shape)}
        return noise

    def critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        values = self.critic(batch.obs, batch.actions)  # [K, 2, B]
        loss = temporal_difference_loss(values, batch, self._next_value(batch), self.options.gamma)
        if self.options.alpha == 0:
            return loss
        return loss + self.options.alpha * (self._log_sum_exp(batch, noise) - values).mean(-1).sum(-1)

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        actions, cost = self._actions_and_cost(batch)
        return cost - self.critic.first(batch.obs, actions).mean(-1)

    def _actions_and_cost(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The actor's actions, [K, B, A], and what their size costs, [K].

        The published code pays for actions alone. Within fifty updates a critic that has learned nothing yet drives its
        actors to the corners of the box, where tanh has no gradient and nothing brings them back: so its input costs.
        """
        raw = self.actor.net(batch.obs)
        actions = self.policy.space.decode(torch.tanh(raw))
        options = self.options
        cost = options.action_cost * actions.square() + options.saturation_cost * self.policy.space.trim(raw).square()
        return actions, cost.mean((1, 2))

    @torch.no_grad()
    def _next_value(self, batch: Batch) -> Tensor:
        """min_k Q'_k of the target policy's next action, [K, B]."""
        if isinstance(self.policy_target, GreedyActor):
            return self.policy_target.values(batch.next_obs).amin(1).amax(-1)
        actions = self.policy_target(batch.next_obs, batch.next_obs)
        return self.critic_target(batch.next_obs, actions).amin(1)

    def _log_sum_exp(self, batch: Batch, noise: Noise) -> Tensor:
        """log of the sum, or of the estimated integral, of exp Q_k(o, a) over actions a, [K, 2, B]."""
        if isinstance(self.policy, GreedyActor):
            return self.policy.values(batch.obs).logsumexp(-1)
        actions, log_density = self._proposals(batch, noise)
        return (self.critic.of_many(batch.obs, actions) - log_density.unsqueeze(1)).logsumexp(-1)

    @torch.no_grad()
    def _proposals(self, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sampled actions [K, B, m, A] and their log densities [K, B, m].

        The published code subtracts the density where its logarithm belongs; here it is the logarithm. A Gaussian's
        density is that of the sample before it is clipped to the box.
        """
        space, sigma = self.policy.space, self.options.proposal_sigma
        dims = space.mask.sum(-1, keepdim=True)  # [K, 1, 1], components that are not padding
        uniform = noise["uniform"]
        actions = [uniform]
        log_density = [(-math.log(2.0) * dims).expand(uniform.shape[:3])]
        if self.options.proposal is Proposal.POLICY:
            for name, obs in (("around", batch.obs), ("around_next", batch.next_obs)):
                eps = noise[name]
                actions.append((self.actor(obs, obs).unsqueeze(2) + sigma * eps).clamp(-1.0, 1.0))
                square = (eps.square() * space.mask.unsqueeze(1)).sum(-1)
                log_density.append(-0.5 * square - dims * math.log(sigma * math.sqrt(2.0 * math.pi)))
        joined = torch.cat(actions, 2)
        return (joined * space.mask.unsqueeze(1) if space.ragged else joined), torch.cat(log_density, 2)
