"""Multi-agent TD3: decentralised actors, one central twin critic of the team's reward.

Actors see only their own observation, since a data set's policies must be expressible by the agents that learn from
it. The critic is central because it exists only during training: with the global state and everybody's action its
target is stationary, all actors climb the same team value together, and one critic serves every agent (a third of the
arithmetic of a critic an agent).

Source: Fujimoto et al. 2018 (TD3); Ackermann et al. 2019 (MATD3).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from om2p_data.behavior.policy import TeamActor
from om2p_data.behavior.replay import Batch
from om2p_data.envs.registry import Task
from om2p_data.stacked import Activation, StackedMLP, polyak


class CentralCritic(nn.Module):
    """Twin value of (global state, joint action)."""

    def __init__(self, task: Task, hidden: Sequence[int], generator: torch.Generator):
        super().__init__()
        inputs = task.state_dim + task.num_agents * task.act_dim
        self.net = StackedMLP(2, inputs, 1, hidden, Activation.RELU, generator=generator)

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """state [B, S], actions [N, B, A] -> values [2, B]."""
        joint = actions.transpose(0, 1).flatten(1)  # [B, N * A]
        x = torch.cat([state, joint], 1)
        return self.net(x.expand(2, -1, -1)).squeeze(-1)


class TD3:
    """The learner: one call of `update` takes one step of the critic and, every `policy_delay` calls, of the actors.

    Args:
        task: row of the task table.
        hidden: widths of the hidden layers of actors and critic.
        learning_rate: of both Adam optimisers.
        tau: share of the source in every target average.
        policy_delay: critic steps per actor step.
        smoothing, smoothing_clip: standard deviation and bound of the noise on target actions.
        saturation_cost: weight of the mean squared logit in the actors' loss. Without it the first, still wrong critic
            drives every tanh into saturation within a few hundred steps, where its gradient is gone.
        reward_scale: rewards are multiplied by this before they enter the critic, to keep its values near 1-100.
        seed: of initial weights and target noise.
    """

    def __init__(
        self,
        task: Task,
        *,
        hidden: Sequence[int],
        learning_rate: float,
        tau: float,
        policy_delay: int,
        smoothing: float,
        smoothing_clip: float,
        saturation_cost: float,
        reward_scale: float,
        seed: int,
    ):
        self.generator = torch.Generator().manual_seed(seed)
        self.actor = TeamActor(task.num_agents, task.obs_dim, task.act_dim, hidden, self.generator)
        self.critic = CentralCritic(task, hidden, self.generator)
        self._actor_target = copy.deepcopy(self.actor)
        self._critic_target = copy.deepcopy(self.critic)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), learning_rate, foreach=True)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), learning_rate, foreach=True)
        self.optimizers = [self._actor_optimizer, self._critic_optimizer]
        self._tau = tau
        self._policy_delay = policy_delay
        self._smoothing = smoothing
        self._smoothing_clip = smoothing_clip
        self._saturation_cost = saturation_cost
        self._reward_scale = reward_scale
        self.updates = 0

    def modules(self) -> nn.ModuleDict:
        """Everything that is learned, by name: what a checkpoint keeps beside the optimisers."""
        return nn.ModuleDict(
            {
                "actor": self.actor,
                "critic": self.critic,
                "actor_target": self._actor_target,
                "critic_target": self._critic_target,
            }
        )

    def update(self, batch: Batch) -> None:
        """One TD3 step on B n-step transitions."""
        with torch.no_grad():
            noise = torch.empty_like(batch.actions).normal_(0.0, self._smoothing, generator=self.generator)
            noise.clamp_(-self._smoothing_clip, self._smoothing_clip)
            next_actions = (self._actor_target(batch.next_obs) + noise).clamp_(-1.0, 1.0)
            next_value = self._critic_target(batch.next_state, next_actions).amin(0)  # [B]
            target = self._reward_scale * batch.reward + batch.discount * next_value
        loss = (self.critic(batch.state, batch.actions) - target).square().mean(1).sum()
        self._critic_optimizer.zero_grad()
        loss.backward()
        self._critic_optimizer.step()
        self.updates += 1
        if self.updates % self._policy_delay == 0:
            self._improve_actors(batch)
            polyak(list(self._actor_target.parameters()), list(self.actor.parameters()), self._tau)
            polyak(list(self._critic_target.parameters()), list(self.critic.parameters()), self._tau)

    def _improve_actors(self, batch: Batch) -> None:
        self.critic.requires_grad_(False)
        logits = self.actor.net(batch.obs)  # [N, B, A]
        value = self.critic(batch.state, torch.tanh(logits))[0].mean()
        loss = self._saturation_cost * logits.square().mean() - value
        self._actor_optimizer.zero_grad()
        loss.backward()
        self._actor_optimizer.step()
        self.critic.requires_grad_(True)
