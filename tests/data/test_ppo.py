"""Multi-agent PPO against slow plain references, and on problems whose answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from om2p_data.behavior.ppo import PPO, Gaussian, RunningScale, Steps
from om2p_data.envs.registry import find

pytestmark = pytest.mark.usefixtures("one_thread")
CN = find("cn")
TOY = dataclasses.replace(CN, obs_dim=5, state_dim=4)  # 3 agents, 2 actions
PROBE = dataclasses.replace(CN, obs_dim=1, state_dim=1, act_dim=1)
T, E, N = 6, 8, 3

SETTINGS: dict[str, Any] = {
    "hidden": (12, 10),
    "learning_rate": 3e-2,
    "epochs": 2,
    "minibatch": 20,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "clip": 0.1,
    "entropy_cost": 0.02,
    "initial_noise": 0.4,
    "max_gradient": 0.5,
    "seed": 0,
}


def log_noise(learner: PPO) -> Tensor:
    """Logarithms of the deviations [N, 1, A] of a learner of continuous actions."""
    assert isinstance(learner.distribution, Gaussian)
    return learner.distribution.log_noise


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_steps(seed: int) -> Steps:
    """Of worlds that pay 20 times what they show, with both kinds of ends."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    ended = torch.rand((T, E), generator=generator) < 0.3
    terminated = ended & (torch.rand((T, E), generator=generator) < 0.5)
    assert (ended & ~terminated).any()
    assert terminated.any()
    return Steps(
        obs=3 * normal(T, N, E, 5) + 1,
        state=2 * normal(T, E, 4) - 1,
        raw_actions=0.5 * normal(T, N, E, 2),
        rewards=20 * normal(T, E),
        next_state=2 * normal(T, E, 4) - 1,
        terminated=terminated,
        ended=ended,
    )


# Running scales


@pytest.mark.parametrize("shape", [(4,), (3, 1, 5)])
def test_a_running_scale_is_that_of_all_samples(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    scale = RunningScale(*shape)
    x = rng.normal(0, 1, (7, *shape)).astype(np.float32)
    np.testing.assert_array_equal(scale(torch.from_numpy(x)), x)  # before anything was seen
    parts = [rng.normal(1e3, 10.0 ** rng.integers(-1, 2, shape), (size, *shape)) for size in (1, 300, 7, 50)]
    for part in parts:
        scale.update(torch.from_numpy(part))
    together = np.concatenate(parts)
    np.testing.assert_allclose(scale.mean, together.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale.variance, together.var(0), rtol=1e-9)
    assert scale.count == len(together)
    np.testing.assert_allclose(scale.deviation, together.std(0), rtol=1e-6)
    found = scale(torch.from_numpy(together.astype(np.float32))).numpy()
    np.testing.assert_allclose(found, (together - together.mean(0)) / together.std(0), atol=5e-3)


def test_what_never_moves_is_not_blown_up() -> None:
    scale = RunningScale(2)
    scale.update(torch.tensor([[5.0, 1.0], [5.0, 2.0]]))
    torch.testing.assert_close(scale(torch.tensor([[6.0, 1.0]])), torch.tensor([[1.0, -1.0]]))


# One round of learning


class PlainPPO:
    """PPO once more, with one torch network an agent, loops over steps, and nothing stacked."""

    def __init__(self, learner: PPO):
        self.actors = [nn.Sequential(_copy(learner.net.net, n), nn.Tanh()) for n in range(N)]
        self.log_noise = [nn.Parameter(log_noise(learner)[n, 0].detach().clone()) for n in range(N)]
        self.value = _copy(learner._value, 0)
        groups = [[*actor.parameters(), noise] for actor, noise in zip(self.actors, self.log_noise, strict=True)]
        self.groups = [*groups, list(self.value.parameters())]
        parameters = [parameter for group in self.groups for parameter in group]
        self._step = torch.optim.Adam(parameters, SETTINGS["learning_rate"], eps=1e-5)
        self._draws = torch.Generator()
        self._draws.set_state(learner.generator.get_state())
        self._seen: dict[str, list[Tensor]] = {"obs": [], "state": [], "returns": []}
        self._running = torch.zeros(E)

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        if not self._seen[name]:
            return x
        samples = torch.cat(self._seen[name])
        return (x - samples.mean(0)) / samples.std(0, correction=0)

    def _log_density(self, n: int, obs: Tensor, action: Tensor) -> Tensor:
        normal = torch.distributions.Normal(self.actors[n](obs), self.log_noise[n].exp())
        return normal.log_prob(action).sum(-1)

    def advantages(self, steps: Steps) -> tuple[Tensor, Tensor]:
        """By the definition: every step sums up the errors of all later steps of its episode."""
        running, returns = self._running, []
        for t in range(T):
            running = SETTINGS["gamma"] * running + steps.rewards[t]
            returns.append(running)
            running = torch.where(steps.ended[t], 0.0, running)
        self._running = running
        self._seen["returns"].append(torch.stack(returns).reshape(-1, 1))
        rewards = steps.rewards / torch.cat(self._seen["returns"]).std(0, correction=0)
        with torch.no_grad():
            value = self.value(self._scaled("state", steps.state))[..., 0]
            after = self.value(self._scaled("state", steps.next_state))[..., 0]
        advantage = torch.zeros(T, E)
        for e in range(E):
            for t in range(T):
                weight = 1.0
                for k in range(t, T):
                    bootstrap = 0.0 if steps.terminated[k, e] else SETTINGS["gamma"] * after[k, e]
                    advantage[t, e] += weight * (rewards[k, e] + bootstrap - value[k, e])
                    weight *= SETTINGS["gamma"] * SETTINGS["gae_lambda"]
                    if steps.ended[k, e]:
                        break
        return advantage, advantage + value

    def update(self, steps: Steps) -> None:
        obs = self._scaled("obs", steps.obs.permute(0, 2, 1, 3))  # [T, E, N, O]
        state = self._scaled("state", steps.state)
        advantage, target = self.advantages(steps)
        with torch.no_grad():
            old = [self._log_density(n, obs[:, :, n], steps.raw_actions[:, n]) for n in range(N)]
        for _ in range(SETTINGS["epochs"]):
            order = torch.randperm(T * E, generator=self._draws).tolist()
            while order:
                rows, order = order[: SETTINGS["minibatch"]], order[SETTINGS["minibatch"] :]
                t, e = torch.tensor(rows) // E, torch.tensor(rows) % E
                drawn = advantage[t, e]
                drawn = (drawn - drawn.mean()) / (drawn.std() + 1e-8)
                self._step.zero_grad()
                for n in range(N):
                    ratio = (self._log_density(n, obs[t, e, n], steps.raw_actions[t, n, e]) - old[n][t, e]).exp()
                    low, high = 1 - SETTINGS["clip"], 1 + SETTINGS["clip"]
                    gain = torch.minimum(ratio * drawn, ratio.clip(low, high) * drawn).mean()
                    entropy = torch.distributions.Normal(0.0, self.log_noise[n].exp()).entropy().sum()
                    (-gain - SETTINGS["entropy_cost"] * entropy).backward()
                (self.value(state[t, e])[:, 0] - target[t, e]).square().mean().backward()
                for group in self.groups:
                    nn.utils.clip_grad_norm_(group, SETTINGS["max_gradient"])
                self._step.step()
        self._seen["obs"].append(steps.obs.permute(0, 2, 1, 3).flatten(0, 1))
        self._seen["state"].append(steps.state.flatten(0, 1))


def _copy(net: nn.Module, index: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in [*net.hidden_layers, net.output_layer]:  # pyright: ignore
        linear = nn.Linear(*layer.weight.shape[1:])
        linear.weight.data.copy_(layer.weight[index].T)
        linear.bias.data.copy_(layer.bias[index, 0])
        modules += [linear, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def assert_equal_nets(learner: PPO, plain: PlainPPO, obs: Tensor, state: Tensor) -> None:
    """obs [N, B, O] and state [B, S], standardised."""
    means = torch.stack([actor(o) for actor, o in zip(plain.actors, obs, strict=True)])
    torch.testing.assert_close(learner.net(obs), means, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(log_noise(learner)[:, 0], torch.stack(list(plain.log_noise)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(learner._value(state[None])[0], plain.value(state), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_learning_equals_plain_ppo() -> None:
    """Three rounds, so that all scales have moved, and bounds and clips have bitten."""
    learner = PPO(TOY, **SETTINGS)
    learner.net.double()
    plain = PlainPPO(learner)
    before = [parameter.detach().clone() for parameter in learner.modules().parameters()]
    for seed in range(3):
        steps = random_steps(seed)
        learner.update(steps)
        plain.update(steps)
    assert learner.updates == 3 * 2 * 3  # rounds, epochs, minibatches of 20 among 48 steps
    probe = random_steps(99)
    assert_equal_nets(learner, plain, probe.obs[:, :, 0].transpose(0, 1), probe.state[:, 0])
    for old, new in zip(before, learner.modules().parameters(), strict=True):
        assert (new - old).abs().max() > 0.01


@pytest.mark.usefixtures("float64")
def test_advantages_equal_their_definition() -> None:
    learner = PPO(TOY, **SETTINGS)
    plain = PlainPPO(learner)
    for seed in (0, 1):  # the return runs on into the second round
        steps = random_steps(seed)
        with torch.no_grad():
            found, expected = learner._advantage(steps), plain.advantages(steps)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    learner.forget_worlds()
    plain._running = torch.zeros(E)
    with torch.no_grad():
        torch.testing.assert_close(learner._advantage(steps), plain.advantages(steps), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("terminated", "value"), [(False, 10.0), (True, 1.0)])
def test_out_of_time_is_not_the_end(terminated: bool, value: float) -> None:
    """Reward 1 in episodes of one step: 1 / (1 - 0.9) where a clock cuts them, 1 where they terminate."""
    settings: dict[str, Any] = SETTINGS | {"epochs": 4, "minibatch": 64}
    learner = PPO(PROBE, **settings)
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(16, 8, dtype=torch.bool)
    state = torch.randn((16, 8, 1), generator=generator)
    rewards = 1 + torch.randn((16, 8), generator=generator)
    steps = Steps(
        torch.zeros(16, N, 8, 1), state, torch.zeros(16, N, 8, 1), rewards, state, ones & terminated, ended=ones
    )
    for _ in range(60):
        learner.update(steps)
    unit = learner.return_scale.deviation
    found = learner._value(learner.state_scale(state).flatten(0, 1)[None]) * unit
    assert found.mean().item() == pytest.approx(value, rel=0.05)


def test_one_agents_loss_does_not_reach_anothers_weights() -> None:
    """The same round, but agent 1 did and saw something else: only agent 1 and the common value may differ."""
    steps, one, other = random_steps(0), PPO(TOY, **SETTINGS), PPO(TOY, **SETTINGS)
    obs, actions = steps.obs.clone(), steps.raw_actions.clone()
    obs[:, 1] += 1.0
    actions[:, 1] *= -1.0
    one.update(steps)
    other.update(dataclasses.replace(steps, obs=obs, raw_actions=actions))
    for (name, first), second in zip(one.modules()["actor"].named_parameters(), other.net.parameters(), strict=True):
        assert (first != second).flatten(1).any(1).tolist() == [False, True, False], name
    assert (log_noise(one) != log_noise(other)).flatten(1).any(1).tolist() == [False, True, False]
    for first, second in zip(one._value.parameters(), other._value.parameters(), strict=True):
        assert torch.equal(first, second)


# Acting


def learned() -> PPO:
    learner = PPO(TOY, **SETTINGS)
    for seed in range(4):
        learner.update(random_steps(seed))
    return learner


def test_the_policy_of_raw_observations_is_the_net_on_standardised_ones() -> None:
    learner, obs = learned(), random_steps(9).obs[0]  # [N, E, O]
    before = [parameter.detach().clone() for parameter in learner.net.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(learner.actor(obs), learner.net(learner.obs_scale(obs)), rtol=1e-4, atol=1e-6)
        assert (learner.actor(obs) - learner.net(obs)).abs().max() > 0.1
    assert all(torch.equal(old, new) for old, new in zip(before, learner.net.parameters(), strict=True))


def test_actions_are_normal_around_the_policy() -> None:
    learner = learned()
    obs = np.repeat(random_steps(9).obs[0, :, :2].transpose(0, 1).numpy(), 20_000, 0)  # [2 * 20000, N, O]
    actions = learner.act(obs)
    assert (actions.shape, actions.dtype) == ((40_000, N, 2), np.float32)
    mean = learner.actor.act(obs[[0, -1]], np.random.default_rng(0))
    noise = log_noise(learner).exp().detach()[:, 0].numpy()
    assert not np.allclose(noise, SETTINGS["initial_noise"], atol=0.01)
    for half, expected in zip(np.split(actions, 2), mean, strict=True):
        np.testing.assert_allclose(half.mean(0), expected, atol=0.02)
        np.testing.assert_allclose(half.std(0), noise, rtol=0.03)
    drawn = ((actions - np.repeat(mean, 20_000, 0)) / noise).reshape(40_000, -1)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(2 * N)).max() < 0.03
    assert (np.abs(learner.act(obs) - actions) > 0).mean() > 0.99


def test_the_noise_starts_at_its_size_and_the_policy_the_same_everywhere() -> None:
    learner = PPO(TOY, **SETTINGS)
    obs = np.random.default_rng(0).normal(0, 1, (20_000, N, 5)).astype(np.float32)
    np.testing.assert_allclose(learner.act(obs).std(0), 0.4, rtol=0.03)
    assert learner.actor.act(obs, np.random.default_rng(0)).std(0).max() < 0.01


# Problems with a known answer


def test_actors_find_the_best_actions_of_a_known_reward() -> None:
    """One-step episodes with reward -sum_n (a_n - c_n o_n)^2: agent n must act c_n times what it sees."""
    best = torch.tensor([0.3, -0.5, 0.6])[:, None, None]
    settings: dict[str, Any] = SETTINGS | {"hidden": (32,), "minibatch": 128, "epochs": 4, "learning_rate": 1e-2}
    learner = PPO(PROBE, **settings)
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(4, 128, dtype=torch.bool)
    for _ in range(80):
        obs = 2 * torch.rand((4, N, 128, 1), generator=generator) - 1
        actions = torch.stack([torch.from_numpy(learner.act(row.transpose(0, 1).numpy())) for row in obs])
        actions = actions.transpose(1, 2)  # [T, N, E, 1]
        rewards = -(actions - best * obs).square().sum((1, 3))
        learner.update(Steps(obs, obs[:, 0], actions, rewards, obs[:, 0], ones, ones))
    probe = torch.linspace(-0.9, 0.9, 19).expand(N, 19)[..., None]
    assert (learner.actor(probe) - best * probe).abs().max() < 0.1
    assert log_noise(learner).exp().max() < 0.2  # nothing is left to explore
