"""OM2P as one writes it first: one agent after the other in eager PyTorch. A baseline of speed, equal in mathematics.

Nothing of the training code is used but its options, so that it is a second opinion on the update, too.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Setting:
    """What the peers of OM2P are built for: the recipe `om2p`, on uniform times.

    Attributes:
        agents: N; obs_dim: O; act_dim: A.
        hidden: widths of the hidden layers.
        batch_size: B.
        exact: whether the mean-flow target has its exact derivative, or none.
        gamma, eta, rho, learning_rate, adaptive_power, equal_share: as in recipes.
    """

    agents: int
    obs_dim: int
    act_dim: int
    hidden: tuple[int, ...]
    batch_size: int
    exact: bool
    gamma: float
    eta: float
    rho: float
    learning_rate: float
    adaptive_power: float
    equal_share: float


class Critic(nn.Module):
    """Q(o, a) with layer norm after every GELU."""

    def __init__(self, inputs: int, hidden: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for size, width in itertools.pairwise([inputs, *hidden]):
            layers += [nn.Linear(size, width), nn.GELU(), nn.LayerNorm(width)]
        self.net = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat([obs, actions], -1)).squeeze(-1)


class Velocity(nn.Module):
    """u(a_r, r, t | o)."""

    def __init__(self, setting: Setting):
        super().__init__()
        layers: list[nn.Module] = []
        for size, width in itertools.pairwise([setting.obs_dim + setting.act_dim + 2, *setting.hidden]):
            layers += [nn.Linear(size, width), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Linear(setting.hidden[-1], setting.act_dim))

    def forward(self, obs: Tensor, a: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([obs, a, r, t], -1))

    def act(self, obs: Tensor, eps: Tensor) -> Tensor:
        zero = torch.zeros_like(obs[:, :1])
        return (eps + self(obs, eps, zero, zero + 1.0)).clamp(-1.0, 1.0)


class PlainAgent:
    """One agent's networks, optimisers and update."""

    def __init__(self, setting: Setting, device: torch.device | str = "cpu"):
        self.setting = setting
        self.actor = Velocity(setting).to(device)
        inputs = setting.obs_dim + setting.act_dim
        self.critics = nn.ModuleList(Critic(inputs, setting.hidden) for _ in range(2)).to(device)
        self.actor_target, self.critic_targets = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), setting.learning_rate)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), setting.learning_rate)

    def update(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One update on a batch of this agent's transitions, [B, ...]; both losses."""
        setting = self.setting
        with torch.no_grad():
            next_actions = self.actor_target.act(batch["next_obs"], noise["eps_next"])
            next_values = [critic(batch["next_obs"], next_actions) for critic in self.critic_targets]
            target = batch["rewards"] + setting.gamma * batch["mask"] * sum(next_values) / 2
        critic_loss = sum(
            F.mse_loss(critic(batch["obs"], batch["actions"]), target) for critic in self.critics
        ) + torch.zeros(())
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        self.critics.requires_grad_(False)
        actions = self.actor.act(batch["obs"], noise["eps_policy"])
        actions.register_hook(self._of_unit_slope)
        values = torch.stack([critic(batch["obs"], actions) for critic in self.critics])
        actor_loss = self._behavior_loss(batch, noise) - setting.eta * values.mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        self.critics.requires_grad_(True)
        with torch.no_grad():
            for target, source in ((self.actor_target, self.actor), (self.critic_targets, self.critics)):
                for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
                    slow.lerp_(fast, setting.rho)
        return critic_loss.detach(), actor_loss.detach()

    def _of_unit_slope(self, gradient: Tensor) -> Tensor:
        return gradient * (self.setting.eta / (len(gradient) * gradient.square().sum()).sqrt())

    def _behavior_loss(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        obs, eps = batch["obs"], noise["eps"]
        r, t = noise["times"][:, :1], noise["times"][:, 1:]
        velocity = batch["actions"] - eps
        a_r = eps + r * velocity
        if self.setting.exact:
            found = torch.func.jvp(lambda a, r: self.actor(obs, a, r, t), (a_r, r), (velocity, torch.ones_like(r)))
            u, du_dr = found[0], found[1]
            target = velocity - (r - t) * du_dr
        else:
            u, target = self.actor(obs, a_r, r, t), velocity
        square = (u - target.detach()).square().sum(-1)
        return (square * (square.detach() + 1e-3).pow(-self.setting.adaptive_power)).mean()


class PlainTeam:
    """All agents, one after the other, with batches and noise drawn on the device.

    Args:
        setting: sizes and options.
        data: obs and next_obs [M, N, O], actions [M, N, A], rewards and mask [M, N].
    """

    def __init__(self, setting: Setting, data: Mapping[str, Tensor]):
        self.setting = setting
        self._data = data
        self._device = data["obs"].device
        self._agents = [PlainAgent(setting, self._device) for _ in range(setting.agents)]

    def update(self) -> list[tuple[Tensor, Tensor]]:
        """One update of every agent."""
        size = self.setting.batch_size
        rows = torch.randint(len(self._data["rewards"]), (size,), device=self._device)
        losses = []
        for index, agent in enumerate(self._agents):
            batch = {name: values[rows, index] for name, values in self._data.items()}
            losses.append(agent.update(batch, draw_noise(self.setting, self._device)))
        return losses


def draw_noise(setting: Setting, device: torch.device) -> dict[str, Tensor]:
    """What one agent's update needs: three noises [B, A] and ordered times [B, 2], a share of them equal."""
    size, act_dim = setting.batch_size, setting.act_dim
    times = torch.rand(size, 2, device=device).sort(-1).values
    times[:, 0] = torch.where(torch.rand(size, device=device) < setting.equal_share, times[:, 1], times[:, 0])
    noise = {name: torch.randn(size, act_dim, device=device) for name in ("eps", "eps_policy", "eps_next")}
    return noise | {"times": times}
