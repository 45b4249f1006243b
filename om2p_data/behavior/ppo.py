"""Multi-agent PPO: decentralised actors, one central value of the global state.

It earns its place beside TD3 on MuJoCo's bodies: with the agents' own joints for observations, actors that are judged
by a value of the whole body learn to run in minutes, where TD3's actors get stuck at a third of the return.

Source: Schulman et al. 2017 (PPO); Yu et al. 2022 (MAPPO: central value, normalised inputs and returns).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from om2p_data.behavior.policy import TeamActor
from om2p_data.envs.registry import Task
from om2p_data.errors import UserError
from om2p_data.stacked import Activation, StackedLinear, StackedMLP

_EPSILON = 1e-8


class RunningScale(nn.Module):
    """Mean and deviation of everything seen so far, per component.

    Args:
        shape: of one sample, or of a group of samples that share nothing.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, *shape: int):
        super().__init__()
        # float64, since a sum over millions of samples is kept.
        self.register_buffer("mean", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(*shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, samples: Tensor) -> None:
        """Take in samples [B, *shape] (Chan et al. 1979: merging two sets of moments)."""
        samples = samples.double()
        size = len(samples)
        total = self.count + size
        delta = samples.mean(0) - self.mean
        spread = self.variance * self.count + samples.var(0, correction=0) * size
        self.variance = (spread + delta.square() * self.count * size / total) / total
        self.mean = self.mean + delta * size / total
        self.count = total

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, float32 [*shape]; one where a component never moved."""
        deviation = self.variance.sqrt()
        return torch.where(deviation > 1e-4, deviation, 1.0).float()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., *shape], standardised."""
        return (x - self.mean.float()) / self.deviation


@dataclass(frozen=True)
class Steps:
    """T steps of E worlds under the current actors; `ended` says that the next row belongs to another episode."""

    obs: Tensor  # [T, N, E, O]
    state: Tensor  # [T, E, S]
    raw_actions: Tensor  # [T, N, E, A], before they were clipped to [-1, 1]
    rewards: Tensor  # [T, E], the team's
    next_state: Tensor  # [T, E, S], what the step led to, before any restart
    terminated: Tensor  # bool [T, E]
    ended: Tensor  # bool [T, E], terminated or out of time


class Gaussian(nn.Module):
    """Normal actions around the network's output, with a learned deviation of their own for every agent.

    Args:
        task: sizes.
        initial_noise: standard deviation at the start.
    """

    def __init__(self, task: Task, initial_noise: float):
        super().__init__()
        self.log_noise = nn.Parameter(torch.full((task.num_agents, 1, task.act_dim), math.log(initial_noise)))

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """out [N, E, A] -> actions [N, E, A], not clipped."""
        return out + self.log_noise.exp() * torch.empty_like(out).normal_(generator=generator)

    def log_probability(self, out: Tensor, actions: Tensor) -> Tensor:
        """Log density up to a constant, [N, B]."""
        score = (actions - out) * (-self.log_noise).exp()
        return -0.5 * score.square().sum(-1) - self.log_noise.sum(-1)

    def entropy(self, out: Tensor) -> Tensor:
        """Up to a constant, [N]."""
        del out
        return self.log_noise.sum((1, 2))


class Categorical(nn.Module):
    """Choices, one-hot, whose logits the network puts out."""

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """out [N, E, A] -> one-hot actions [N, E, A]."""
        drawn = torch.multinomial(out.softmax(-1).flatten(0, 1), 1, generator=generator)  # [N * E, 1]
        return F.one_hot(drawn.view(out.shape[:2]), out.shape[-1]).to(out.dtype)

    def log_probability(self, out: Tensor, actions: Tensor) -> Tensor:
        """[N, B]."""
        return (out.log_softmax(-1) * actions).sum(-1)

    def entropy(self, out: Tensor) -> Tensor:
        """Mean over the batch, [N]."""
        log_pi = out.log_softmax(-1)
        return -(log_pi.exp() * log_pi).sum(-1).mean(-1)


def _distribution(task: Task, initial_noise: float | None) -> Gaussian | Categorical:
    if task.discrete and initial_noise is None:
        return Categorical()
    if not task.discrete and initial_noise is not None:
        return Gaussian(task, initial_noise)
    kind = "discrete actions: leave it out" if task.discrete else "continuous actions: give it"
    raise UserError(f"behavior.ppo.initial_noise is for continuous actions, and {task.name} has {kind}")


class PPO:
    """The learner: `act` collects, `update` learns from what was collected.

    Args:
        task: row of the task table.
        hidden: widths of the hidden layers of actors and value (tanh).
        learning_rate: of Adam.
        epochs: passes over the collected steps.
        minibatch: steps (of the team) in a minibatch.
        gamma, gae_lambda: discount, and decay of the advantage estimate (Schulman et al. 2016).
        clip: bound on the change of the action probability's ratio.
        entropy_cost: weight of the actors' entropy, subtracted from their loss.
        initial_noise: standard deviation of continuous actions at the start, which is learned; None for choices.
        max_gradient: bound on the norm of each actor's and of the value's gradient.
        seed: of initial weights, actions and minibatches.

    Raises:
        UserError: `initial_noise` is missing, or given for choices.
    """

    def __init__(
        self,
        task: Task,
        *,
        hidden: Sequence[int],
        learning_rate: float,
        epochs: int,
        minibatch: int,
        gamma: float,
        gae_lambda: float,
        clip: float,
        entropy_cost: float,
        initial_noise: float | None = None,
        max_gradient: float,
        seed: int,
    ):
        self.generator = torch.Generator().manual_seed(seed)
        self._task = task
        self.net = TeamActor(
            task.num_agents,
            task.obs_dim,
            task.act_dim,
            hidden,
            self.generator,
            activation=Activation.TANH,
            discrete=task.discrete,
        )
        self.distribution = _distribution(task, initial_noise)
        self._value = StackedMLP(1, task.state_dim, 1, hidden, Activation.TANH, generator=self.generator)
        with torch.no_grad():  # small first actions: no tanh starts out saturated, and no value far off
            self.net.net.output_layer.weight.mul_(0.01)
            self._value.output_layer.weight.mul_(0.1)
        self.obs_scale = RunningScale(task.num_agents, 1, task.obs_dim)
        self.state_scale = RunningScale(task.state_dim)
        self.return_scale = RunningScale(1)
        self._actor_parameters = [*self.net.parameters(), *self.distribution.parameters()]
        self._value_parameters = list(self._value.parameters())
        self._optimizer = torch.optim.Adam(
            [*self._actor_parameters, *self._value_parameters], learning_rate, eps=1e-5, foreach=True
        )
        self.optimizers = [self._optimizer]
        self._epochs, self._minibatch = epochs, minibatch
        self._gamma, self._lambda = gamma, gae_lambda
        self._clip, self._entropy_cost, self._max_gradient = clip, entropy_cost, max_gradient
        self._discounted: Tensor | None = None  # [E], the running return behind the scale of rewards
        self.updates = 0

    @property
    def actor(self) -> TeamActor:
        """The mean action as a policy of raw observations: the standardisation is folded into the first layer."""
        actor = copy.deepcopy(self.net)
        first = next(iter(actor.net.hidden_layers))
        assert isinstance(first, StackedLinear)
        mean, deviation = self.obs_scale.mean.float(), self.obs_scale.deviation  # [N, 1, O]
        with torch.no_grad():
            first.weight.div_(deviation.mT)
            first.bias.sub_(mean @ first.weight)
        return actor

    def modules(self) -> nn.ModuleDict:
        """Everything that is learned, by name: what a checkpoint keeps beside the optimiser."""
        return nn.ModuleDict(
            {
                "actor": self.net,
                "distribution": self.distribution,
                "value": self._value,
                "obs_scale": self.obs_scale,
                "state_scale": self.state_scale,
                "return_scale": self.return_scale,
            }
        )

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Observations float32 [E, N, O] -> sampled actions float32 [E, N, A], not clipped."""
        out = self._out(self.obs_scale(torch.from_numpy(obs).transpose(0, 1)))  # [N, E, A]
        return self.distribution.sample(out, self.generator).transpose(0, 1).contiguous().numpy()

    def update(self, steps: Steps) -> None:
        """Several epochs of clipped policy improvement on the steps that `act` collected."""
        obs = self.obs_scale(steps.obs)  # [T, N, E, O]
        with torch.no_grad():
            old = self.distribution.log_probability(self._out(_flat(obs)), _flat(steps.raw_actions))  # [N, T * E]
            advantage, target = self._advantage(steps)  # [T, E]
        state = self.state_scale(steps.state).flatten(0, 1)
        batch = (_flat(obs), _flat(steps.raw_actions), old, state, advantage.flatten(), target.flatten())
        size = advantage.numel()
        for _ in range(self._epochs):
            order = torch.randperm(size, generator=self.generator)
            for rows in order.split(self._minibatch):
                self._improve(*(part[:, rows] for part in batch[:3]), *(part[rows] for part in batch[3:]))
        # The scales move only now: within one round, old and new probabilities are of the same inputs.
        self.obs_scale.update(steps.obs.permute(0, 2, 1, 3).flatten(0, 1).unsqueeze(2))
        self.state_scale.update(steps.state.flatten(0, 1))

    def _improve(
        self, obs: Tensor, actions: Tensor, old: Tensor, state: Tensor, advantage: Tensor, target: Tensor
    ) -> None:
        advantage = (advantage - advantage.mean()) / (advantage.std() + _EPSILON)
        out = self._out(obs)
        ratio = (self.distribution.log_probability(out, actions) - old).exp()  # [N, B]
        clipped = ratio.clamp(1.0 - self._clip, 1.0 + self._clip)
        gain = torch.minimum(ratio * advantage, clipped * advantage).mean(1)  # [N]
        value_loss = (self._value(state[None]).flatten() - target).square().mean()
        loss = value_loss - (gain + self._entropy_cost * self.distribution.entropy(out)).sum()
        self._optimizer.zero_grad()
        loss.backward()
        _clip_per_agent(self._actor_parameters, self._max_gradient)
        torch.nn.utils.clip_grad_norm_(self._value_parameters, self._max_gradient)
        self._optimizer.step()
        self.updates += 1

    def _out(self, obs: Tensor) -> Tensor:
        """obs [N, B, O] (standardised) -> mean actions in [-1, 1], or logits, [N, B, A]."""
        return self.net.net(obs) if self.net.discrete else self.net(obs)

    def _advantage(self, steps: Steps) -> tuple[Tensor, Tensor]:
        """Generalised advantage and value target, both [T, E], in units of the running return's deviation."""
        rewards = steps.rewards / self._reward_unit(steps)
        value = self._value(self.state_scale(steps.state).flatten(0, 1)[None]).view_as(rewards)
        after = self._value(self.state_scale(steps.next_state).flatten(0, 1)[None]).view_as(rewards)
        # Out of time is not the end: the value of what the step led to still counts.
        error = rewards + self._gamma * after * ~steps.terminated - value
        advantage = torch.zeros_like(error)
        running = torch.zeros_like(error[0])
        for t in reversed(range(len(error))):
            running = error[t] + self._gamma * self._lambda * running * ~steps.ended[t]
            advantage[t] = running
        return advantage, advantage + value

    def _reward_unit(self, steps: Steps) -> Tensor:
        """Deviation of the discounted return so far, which keeps values near one whatever the task pays."""
        running = torch.zeros_like(steps.rewards[0]) if self._discounted is None else self._discounted
        returns = []
        for reward, ended in zip(steps.rewards, steps.ended, strict=True):
            running = self._gamma * running + reward
            returns.append(running)
            running = running * ~ended
        self._discounted = running
        self.return_scale.update(torch.stack(returns).reshape(-1, 1))
        return self.return_scale.deviation

    def forget_worlds(self) -> None:
        """The next steps come from restarted worlds."""
        self._discounted = None


def _flat(values: Tensor) -> Tensor:
    """[T, N, E, X] -> [N, T * E, X]."""
    return values.transpose(0, 1).flatten(1, 2)


def _clip_per_agent(parameters: Sequence[nn.Parameter], bound: float) -> None:
    """Scale the gradient of each agent, index of the leading dimension, to a norm of at most `bound`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    square = torch.stack([gradient.square().flatten(1).sum(1) for gradient in gradients]).sum(0)  # [N]
    scale = (bound / (square.sqrt() + _EPSILON)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, 1, 1))
