"""Policies: all that acting needs, and all that a policy file holds.

Every policy is decentralised: an agent's action depends on its own observation and its own noise alone.
"""

from __future__ import annotations

import abc
import enum
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from om2p_data.stacked import StackedMLP
from om2p_train.diffusion import dpm_solver
from om2p_train.networks import FourierTime, NetworkConfig, ResidualMLP, TwinCritic, per_seed
from om2p_train.streams import SeedStreams
from om2p_train.team import ActionSpace, Team


class OneStep(enum.Enum):
    """What a flow actor's one-step action is made of."""

    JUMP = "eps+u"  # clip(eps + u(eps, 0, 1 | o)), OM2P paper Eq. 3
    RAW = "u"  # clip(u(eps, 0, 1 | o)), the authors' released code


class Actor(nn.Module, abc.ABC):
    """Policies of K = seeds x agents learners, stacked.

    `forward` takes observations as the networks were trained on them; `act` takes them as the worlds give them.

    Args:
        streams: initialisation streams, one a seed.
        team: sizes.
        config: shape of the networks.
        architecture: the further arguments of the class, as JSON values.

    Attributes:
        kind: name of the class in policy files.
        noise_dim: Z, how many normal numbers one action needs.
        space: where actions live.
        obs_mean, obs_scale: what observations are standardised with, [K, 1, O]; 0 and 1 unless the data say otherwise.
        context: whose play is wanted, one-hot [K, 1, C], where behaviour teams are told apart; it follows observations.
        noise_scale: what the noise is multiplied by where the policy acts; a flow acts with the middle of what it has
            learned at 0.
        takes_the_best: whether an action is the best of several candidates, so that rounding may change it to another.
    """

    kind: ClassVar[str]
    noise_dim: int
    space: ActionSpace
    obs_mean: Tensor
    obs_scale: Tensor
    context: Tensor
    noise_scale: float = 1.0
    takes_the_best: ClassVar[bool] = False

    def __init__(self, streams: SeedStreams, team: Team, config: NetworkConfig, **architecture: Any):
        super().__init__()
        self.team = team
        self.architecture = {"team": team.to_json(), "network": config.model_dump(mode="json"), **architecture}
        seeds = len(streams.generators)
        self.space = ActionSpace(team, seeds).to(streams.device)
        lead = seeds * team.num_agents
        self.register_buffer("obs_mean", torch.zeros(lead, 1, team.obs_dim, device=streams.device))
        self.register_buffer("obs_scale", torch.ones(lead, 1, team.obs_dim, device=streams.device))
        if team.context:
            self.register_buffer("context", torch.zeros(lead, 1, team.context, device=streams.device))

    def standardize(self, mean: Tensor, scale: Tensor) -> None:
        """Take over the statistics that the training data were standardised with, each [N, 1, O]."""
        seeds = len(self.obs_mean) // len(mean)
        self.obs_mean.copy_(mean.repeat(seeds, 1, 1))
        self.obs_scale.copy_(scale.repeat(seeds, 1, 1))

    def play_as(self, behavior_team: int) -> None:
        """Act as one of the C behaviour teams that were told apart."""
        self.context.zero_()[..., behavior_team] = 1.0

    def act(self, obs: Tensor, eps: Tensor) -> Tensor:
        """obs [K, B, O] as the worlds give them, without context; eps ~ N(0, I) [K, B, Z] -> actions [K, B, A]."""
        obs = (obs - self.obs_mean) / self.obs_scale
        if self.team.context:
            obs = torch.cat([obs, self.context.expand(-1, obs.shape[1], -1)], -1)
        return self(obs, self.noise_scale * eps)

    @abc.abstractmethod
    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        """Standardised obs [K, B, O], eps ~ N(0, I) [K, B, Z] -> actions [K, B, A] in [-1, 1] or one-hot."""


class FlowActor(Actor):
    """Mean velocity u(a_r, r, t | o) of every agent and the one-step action that it gives.

    Args: as `Actor`, and
        one_step: form of the one-step action.
        noise_scale: see `Actor`.
    """

    kind = "flow"

    def __init__(
        self,
        streams: SeedStreams,
        team: Team,
        config: NetworkConfig,
        one_step: OneStep | str,
        noise_scale: float = 1.0,
    ):
        self.one_step = OneStep(one_step)
        super().__init__(streams, team, config, one_step=self.one_step.value, noise_scale=noise_scale)
        self.noise_dim = team.act_dim
        self.noise_scale = noise_scale
        self.net = flow_network(streams, team, config, team.input_dim + 2)

    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        eps = self.space.trim(eps)
        start = torch.zeros_like(obs[..., :1])
        u = self.net(torch.cat([obs, eps, start, start + 1.0], -1))  # u(eps, 0, 1 | o), [K, B, A]
        return self.space.decode(eps + u if self.one_step is OneStep.JUMP else u)


class BestOfFlowActor(Actor):
    """A flow actor that draws several one-step actions and takes the one that its critic values most.

    Args: as `FlowActor`, and
        candidates: C, how many are drawn.
    """

    kind = "best-of-flow"
    takes_the_best = True

    def __init__(
        self,
        streams: SeedStreams,
        team: Team,
        config: NetworkConfig,
        one_step: OneStep | str,
        candidates: int,
        noise_scale: float = 1.0,
    ):
        architecture = {"one_step": OneStep(one_step).value, "candidates": candidates, "noise_scale": noise_scale}
        super().__init__(streams, team, config, **architecture)
        self._candidates, self.noise_scale = candidates, noise_scale
        self.noise_dim = candidates * team.act_dim
        self.flow = FlowActor(streams, team, config, one_step)
        self.flow.space = self.space  # an export narrows it for both
        self.critic = TwinCritic(streams, team, config)

    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        repeated = obs.unsqueeze(2).expand(-1, -1, self._candidates, -1).flatten(1, 2)
        starts = eps.unflatten(-1, (self._candidates, self.team.act_dim)).flatten(1, 2)
        actions = self.flow(repeated, starts).unflatten(1, (-1, self._candidates))  # [K, B, C, A]
        return _taken(actions, self.critic.of_many(obs, actions).mean(1))


class ConditionalFlowActor(Actor):
    """Mean velocity u(a_r, r, t | o, c) with a condition c in {bad, good, none}; acts under the good one.

    The condition follows the observation as two numbers: (1, 0) bad, (0, 1) good, (0, 0) none.
    """

    kind = "conditional-flow"

    def __init__(self, streams: SeedStreams, team: Team, config: NetworkConfig):
        super().__init__(streams, team, config)
        self.noise_dim = team.act_dim
        self.net = flow_network(streams, team, config, team.input_dim + 2 + 2)

    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        eps = self.space.trim(eps)
        no = torch.zeros_like(obs[..., :1])
        yes = no + 1.0
        u = self.net(torch.cat([obs, no, yes, eps, no, yes], -1))  # c = good, r = 0, t = 1
        return self.space.decode(eps + u)


class NoiseActor(Actor):
    """One network from observation and noise to the action: clip(net(o, z)). The one-step policy of flow Q-learning."""

    kind = "noise"

    def __init__(self, streams: SeedStreams, team: Team, config: NetworkConfig):
        super().__init__(streams, team, config)
        self.noise_dim = team.act_dim
        self.net = flow_network(streams, team, config, team.input_dim)

    def raw(self, obs: Tensor, eps: Tensor) -> Tensor:
        """The action before it is clipped, [K, B, A]: beyond the box a clipped one has no gradient."""
        return self.net(torch.cat([obs, self.space.trim(eps)], -1))

    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        return self.space.decode(self.raw(obs, eps))


class DeterministicActor(Actor):
    """a = tanh(net(o)) of every agent, or its likeliest choice: net(o) are the choices' logits then."""

    kind = "deterministic"

    def __init__(self, streams: SeedStreams, team: Team, config: NetworkConfig):
        super().__init__(streams, team, config)
        self.noise_dim = 0
        self.net = per_seed(
            streams,
            lambda g: StackedMLP(
                team.num_agents, team.input_dim, team.act_dim, config.hidden, config.activation, generator=g
            ),
        )

    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        del eps
        out = self.net(obs)
        return self.space.decode(out if self.space.discrete else torch.tanh(out))


class GreedyActor(Actor):
    """The choice of the highest value min_k Q_k(o, a): the policy of a critic over discrete actions."""

    kind = "greedy"

    def __init__(self, streams: SeedStreams, team: Team, config: NetworkConfig):
        super().__init__(streams, team, config)
        self.noise_dim = 0
        self.critic = TwinCritic(streams, team, config)

    def values(self, obs: Tensor) -> Tensor:
        """Q_1 and Q_2 of every choice, [K, 2, B, A]; minus infinity where there is no such choice."""
        size = self.team.act_dim
        choices = torch.eye(size, device=obs.device).expand(*obs.shape[:2], size, size)
        return self.space.allowed(self.critic.of_many(obs, choices))

    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        del eps
        return self.space.decode(self.values(obs).amin(1))


class DiffusionActor(Actor):
    """Samples of a diffusion model of the behaviour, one of which is taken by its value (SfBC, Chen et al. 2023).

    Args: as `Actor`, and
        score_hidden: widths of the score network's residual layers.
        time_features: size of the embedding of the diffusion time.
        solver_evaluations: network evaluations a sample takes.
        candidates: samples an action is chosen from.
        sharpness: the choice is drawn from softmax(sharpness * Q).
    """

    kind = "diffusion"
    takes_the_best = True
    trust: Tensor

    def __init__(
        self,
        streams: SeedStreams,
        team: Team,
        config: NetworkConfig,
        score_hidden: list[int],
        time_features: int,
        solver_evaluations: int,
        candidates: int,
        sharpness: float,
    ):
        super().__init__(
            streams,
            team,
            config,
            score_hidden=score_hidden,
            time_features=time_features,
            solver_evaluations=solver_evaluations,
            candidates=candidates,
            sharpness=sharpness,
        )
        self._candidates, self._sharpness, self._evaluations = candidates, sharpness, solver_evaluations
        self.noise_dim = candidates * (team.act_dim + 1)
        self.time = FourierTime(streams, team.num_agents, time_features, scale=_TIME_SCALE)
        inputs = team.input_dim + team.act_dim + time_features
        self.score = per_seed(
            streams,
            lambda g: ResidualMLP(team.num_agents, inputs, team.act_dim, score_hidden, config.activation, generator=g),
        )
        self.critic = TwinCritic(streams, team, config)
        # 0 until the critic has learned anything: the choice among the samples is uniform then.
        self.register_buffer("trust", torch.zeros(len(self.obs_mean), 1, 1, device=streams.device))

    def noise_of(self, obs: Tensor, points: Tensor, time: Tensor) -> Tensor:
        """The noise in points [K, B, A] at diffusion times [K, B, 1] or one time for all, [K, 1, 1]; [K, B, A]."""
        features = self.time(time).expand(*points.shape[:2], -1)
        return self.score(torch.cat([obs, points, features], -1))

    def samples(self, obs: Tensor, eps: Tensor) -> Tensor:
        """Actions of the behaviour: obs [K, B, O], eps ~ N(0, I) [K, B, m, A] -> [K, B, m, A]."""
        stack, batch, many, size = eps.shape
        repeated = obs.unsqueeze(2).expand(-1, -1, many, -1).flatten(1, 2)

        def noise_of(points: Tensor, time: float) -> Tensor:
            return self.noise_of(repeated, points, torch.full_like(self.obs_mean[..., :1], time))

        points = dpm_solver(noise_of, self.space.trim(eps.flatten(1, 2)), self._evaluations)
        return self.space.decode(points).view(stack, batch, many, size)

    def forward(self, obs: Tensor, eps: Tensor) -> Tensor:
        many, size = self._candidates, self.team.act_dim
        start, choice = eps[..., : many * size], eps[..., many * size :]
        actions = self.samples(obs, start.unflatten(-1, (many, size)))
        values = self.critic.of_many(obs, actions).mean(1)  # [K, B, m]
        # The largest of log-weight + Gumbel noise is a draw from the softmax; the normal numbers give the noise.
        uniform = (0.5 + 0.5 * torch.erf(choice * math.sqrt(0.5))).clamp(_TINY, 1.0 - _TINY)
        gumbel = -torch.log(-torch.log(uniform))
        return _taken(actions, self.trust * self._sharpness * values + gumbel)


_TINY = 1e-7  # float32's resolution just below 1
# Frequencies of the embedding of the diffusion time, in turns. Images take 30 (Song et al. 2021), with which a network
# of two layers is not smooth in time after thousands of updates; with 1 it is, and samples keep to the modes.
_TIME_SCALE = 1.0

ACTORS: dict[str, type[Actor]] = {
    actor.kind: actor
    for actor in (
        FlowActor,
        BestOfFlowActor,
        ConditionalFlowActor,
        NoiseActor,
        DeterministicActor,
        GreedyActor,
        DiffusionActor,
    )
}


def _taken(actions: Tensor, scores: Tensor) -> Tensor:
    """Of actions [K, B, m, A] those of the highest scores [K, B, m]; [K, B, A]."""
    best = scores.argmax(-1)[..., None, None]  # [K, B, 1, 1]
    return actions.gather(2, best.expand(-1, -1, 1, actions.shape[-1])).squeeze(2)


def flow_network(streams: SeedStreams, team: Team, config: NetworkConfig, context: int) -> StackedMLP:
    """A network from a point in R^A and `context` more numbers to R^A."""
    return per_seed(
        streams,
        lambda g: StackedMLP(
            team.num_agents, context + team.act_dim, team.act_dim, config.hidden, config.activation, generator=g
        ),
    )
