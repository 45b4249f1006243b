"""OMAR: MA-CQL whose actor is also drawn to the best action that a zeroth-order search finds (Pan et al. 2022).

The gradient of Q leads an actor to the next local optimum; a search over the whole box sees beyond it:

    L_actor = c E || pi(o) - a_hat ||^2 - (1 - c) E Q_1(o, pi(o)),   a_hat = argmax Q_1 over {pi(o), the search's best}.
"""

from __future__ import annotations

import enum

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from om2p_train.algorithms.base import Noise, needs_continuous
from om2p_train.algorithms.ma_cql import MACQL, MACQLOptions
from om2p_train.batches import Batch
from om2p_train.networks import NetworkConfig
from om2p_train.streams import SeedStreams
from om2p_train.team import Team

_SMALLEST_SIGMA = 1e-3  # a search that has contracted to a point still looks around it


class Search(enum.Enum):
    """How the Gaussian that is searched from moves between two rounds."""

    SOFTMAX = "softmax"  # to the mean and deviation of all samples, weighted by softmax(Q): the particle worlds'
    CROSS_ENTROPY = "cross-entropy"  # to those of the elites: HalfCheetah's


class OMAROptions(MACQLOptions):
    """Options of OMAR beyond those of MA-CQL."""

    c: float = Field(ge=0, le=1, description="weight of the search's action against Q in the actor's loss")
    search: Search = Field(description="how the Gaussian that is searched from moves between two rounds")
    search_rounds: PositiveInt = Field(description="of the search")
    search_samples: PositiveInt = Field(description="a round")
    search_elites: PositiveInt = Field(description="of a round's samples; cross-entropy only")
    search_mu: float = Field(ge=-1, le=1, description="mean of the first round, in every component")
    search_sigma: float = Field(gt=0, description="deviation of the first round")

    @model_validator(mode="after")
    def _enough_samples(self) -> OMAROptions:
        if self.search_elites > self.search_samples:
            raise ValueError(
                f"search_elites = {self.search_elites} of search_samples = {self.search_samples} cannot be chosen"
            )
        return self


class OMAR(MACQL):
    """The critic is MA-CQL's."""

    options_type = OMAROptions

    def __init__(self, team: Team, config: NetworkConfig, options: OMAROptions, streams: SeedStreams):
        needs_continuous(team, "OMAR's search", "over choices the best one is exact, and ma-cql takes it")
        super().__init__(team, config, options, streams)

    def draw(self, streams: SeedStreams, batch_size: int) -> Noise:
        options = self.options
        shape = (self.team.num_agents, options.search_rounds, batch_size, options.search_samples, self.team.act_dim)
        return super().draw(streams, batch_size) | {"search": streams.normal(*shape)}

    def actor_loss(self, batch: Batch, noise: Noise) -> Tensor:
        options = self.options
        actions, cost = self._actions_and_cost(batch)  # [K, B, A]
        values = self.critic.first(batch.obs, actions)  # [K, B]
        best = self.search(batch.obs, actions.detach(), values.detach(), noise["search"])
        distance = (actions - best).square().mean((1, 2))
        return options.c * distance - (1.0 - options.c) * values.mean(-1) + cost

    @torch.no_grad()
    def search(self, obs: Tensor, actions: Tensor, values: Tensor, eps: Tensor) -> Tensor:
        """a_hat, [K, B, A]: the best of the policy's actions and of all samples of all rounds.

        The published code looks at the last round alone; an earlier better sample is nothing to forget.

        Args:
            obs: [K, B, O].
            actions, values: the policy's [K, B, A] and their Q_1 [K, B].
            eps: N(0, I), [K, rounds, B, samples, A].
        """
        options, space = self.options, self.policy.space
        mu = torch.full_like(actions, options.search_mu).unsqueeze(2)  # [K, B, 1, A]
        sigma = torch.full_like(mu, options.search_sigma)
        best, best_value = actions, values
        for one in eps.unbind(1):
            samples = (mu + sigma * one).clamp(-1.0, 1.0)  # [K, B, m, A]
            if space.ragged:
                samples = samples * space.mask.unsqueeze(1)
            q = self.critic.first_of_many(obs, samples)  # [K, B, m]
            top_value, top = q.max(-1)
            top_sample = samples.gather(2, top[..., None, None].expand(-1, -1, 1, samples.shape[-1])).squeeze(2)
            better = top_value > best_value
            best = torch.where(better.unsqueeze(-1), top_sample, best)
            best_value = torch.where(better, top_value, best_value)
            if options.search is Search.SOFTMAX:
                weight = q.softmax(-1).unsqueeze(-1)  # [K, B, m, 1]
            else:
                elites = q.topk(options.search_elites, -1).indices
                weight = torch.zeros_like(q).scatter_(-1, elites, 1.0 / options.search_elites).unsqueeze(-1)
            mu = (weight * samples).sum(2, keepdim=True)
            sigma = (weight * (samples - mu).square()).sum(2, keepdim=True).sqrt().clamp_min(_SMALLEST_SIGMA)
        return best
