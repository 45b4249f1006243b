"""Multi-agent TD3 against plain torch, and on problems whose answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from om2p_data.behavior.policy import TeamActor
from om2p_data.behavior.replay import Batch, Replay
from om2p_data.behavior.td3 import TD3
from om2p_data.envs.registry import find

pytestmark = pytest.mark.usefixtures("one_thread")
CN = find("cn")
TOY = dataclasses.replace(CN, obs_dim=5, state_dim=4)  # 3 agents, 2 actions
PROBE = dataclasses.replace(CN, obs_dim=1, state_dim=1, act_dim=1)

SETTINGS: dict[str, Any] = {
    "hidden": (16, 12),
    "learning_rate": 1e-2,
    "tau": 0.2,
    "policy_delay": 2,
    "smoothing": 0.0,
    "smoothing_clip": 0.0,
    "saturation_cost": 0.1,
    "reward_scale": 0.5,
    "seed": 0,
}


def random_batch(size: int, seed: int, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1

    discount = 0.9 * (uniform(size) > 0).to(dtype)
    return Batch(
        uniform(3, size, 5), uniform(size, 4), uniform(3, size, 2), uniform(size),
        uniform(3, size, 5), uniform(size, 4), discount,
    )  # fmt: skip


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class PlainTD3:
    """TD3 once more, with one torch network an agent and a critic, and nothing stacked."""

    def __init__(self, learner: TD3):
        self.actors = [self._copy(learner.actor.net, n) for n in range(3)]
        self.critics = [self._copy(learner.critic.net, k) for k in range(2)]
        self.actor_targets = [self._copy(learner.actor.net, n) for n in range(3)]
        self.critic_targets = [self._copy(learner.critic.net, k) for k in range(2)]
        rate = SETTINGS["learning_rate"]
        self._actor_steps = [torch.optim.Adam(actor.parameters(), rate) for actor in self.actors]
        self._critic_steps = [torch.optim.Adam(critic.parameters(), rate) for critic in self.critics]
        self._updates = 0

    @staticmethod
    def _copy(net: nn.Module, index: int) -> nn.Sequential:
        modules: list[nn.Module] = []
        for layer in [*net.hidden_layers, net.output_layer]:  # pyright: ignore
            linear = nn.Linear(*layer.weight.shape[1:])
            linear.weight.data.copy_(layer.weight[index].T)
            linear.bias.data.copy_(layer.bias[index, 0])
            modules += [linear, nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    def update(self, batch: Batch) -> None:
        with torch.no_grad():
            next_actions = [torch.tanh(actor(o)) for actor, o in zip(self.actor_targets, batch.next_obs, strict=True)]
            next_values = [net(torch.cat([batch.next_state, *next_actions], 1))[:, 0] for net in self.critic_targets]
            target = SETTINGS["reward_scale"] * batch.reward + batch.discount * torch.minimum(*next_values)
        for critic, step in zip(self.critics, self._critic_steps, strict=True):
            value = critic(torch.cat([batch.state, *batch.actions], 1))[:, 0]
            step.zero_grad()
            ((value - target) ** 2).mean().backward()
            step.step()
        self._updates += 1
        if self._updates % SETTINGS["policy_delay"] == 0:
            self._improve(batch)
            self._follow()

    def _improve(self, batch: Batch) -> None:
        logits = [actor(obs) for actor, obs in zip(self.actors, batch.obs, strict=True)]
        value = self.critics[0](torch.cat([batch.state, *map(torch.tanh, logits)], 1)).mean()
        cost = SETTINGS["saturation_cost"] * torch.stack(logits).square().mean()
        for step in self._actor_steps:
            step.zero_grad()
        (cost - value).backward()
        for step in self._actor_steps:
            step.step()

    def _follow(self) -> None:
        tau = SETTINGS["tau"]
        pairs = [
            *zip(self.actor_targets, self.actors, strict=True),
            *zip(self.critic_targets, self.critics, strict=True),
        ]
        for target, source in pairs:
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.data = (1 - tau) * old.data + tau * new.data


@pytest.mark.usefixtures("float64")
def test_updates_equal_plain_td3() -> None:
    """Seven updates: critics, delayed actors and every target average must agree for the last ones to do so."""
    learner = TD3(TOY, **SETTINGS)
    reference = PlainTD3(learner)
    probe = random_batch(20, 99, torch.float64)
    before = learner.actor(probe.obs).detach()
    for seed in range(7):
        batch = random_batch(32, seed, torch.float64)
        learner.update(batch)
        reference.update(batch)
    values = [critic(torch.cat([probe.state, *probe.actions], 1))[:, 0] for critic in reference.critics]
    torch.testing.assert_close(learner.critic(probe.state, probe.actions), torch.stack(values))
    actions = [torch.tanh(actor(obs)) for actor, obs in zip(reference.actors, probe.obs, strict=True)]
    torch.testing.assert_close(learner.actor(probe.obs), torch.stack(actions))
    assert (learner.actor(probe.obs) - before).abs().max() > 0.01


def test_target_noise_is_clipped() -> None:
    def values_after_updates(**changes: float) -> Tensor:
        settings: dict[str, Any] = SETTINGS | changes
        learner = TD3(TOY, **settings)
        for seed in range(5):
            learner.update(random_batch(32, seed))
        return learner.critic(*random_batch(8, 99)[1:3]).detach()

    without = values_after_updates()
    assert torch.equal(values_after_updates(smoothing=5.0, smoothing_clip=0.0), without)
    noisy = values_after_updates(smoothing=0.2, smoothing_clip=0.5)
    assert not torch.allclose(noisy, without, atol=1e-4)
    assert torch.equal(values_after_updates(smoothing=0.2, smoothing_clip=0.5), noisy)
    assert not torch.equal(values_after_updates(smoothing=0.2, smoothing_clip=0.5, seed=1), noisy)


def test_an_actor_sees_and_learns_from_its_own_observation_only() -> None:
    actor = TD3(TOY, **SETTINGS).actor
    obs = random_batch(10, 0).obs
    actor(obs)[1].square().sum().backward()
    for name, parameter in actor.named_parameters():
        assert parameter.grad is not None
        assert [bool(part.any()) for part in parameter.grad] == [False, True, False], name
    changed = obs.clone()
    changed[1] += 1
    moved = (actor(changed) != actor(obs)).flatten(1).any(1)
    assert moved.tolist() == [False, True, False]


def test_a_stacked_team_equals_its_actors_run_one_by_one() -> None:
    team = TD3(TOY, **SETTINGS).actor
    obs = random_batch(10, 0).obs
    for n in range(3):
        single = TeamActor(1, 5, 2, SETTINGS["hidden"])
        single.load_state_dict({name: value[n : n + 1] for name, value in team.state_dict().items()})
        torch.testing.assert_close(single(obs[n : n + 1])[0], team(obs)[n])


@pytest.mark.parametrize(("end", "value"), [("truncated", 2.0), ("terminated", 1.0)])
def test_critic_finds_the_value_of_a_constant_reward(end: str, value: float) -> None:
    """Reward 1 in episodes of one step: 1 / (1 - 0.5) where a clock cuts them, 1 where they terminate."""
    rng = np.random.default_rng(0)
    memory = Replay(PROBE, 4, 400)
    flags = {"terminated": np.zeros((4, 3), bool), "truncated": np.zeros((4, 3), bool), end: np.ones((4, 3), bool)}

    def random(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, (4, *shape)).astype(np.float32)

    for _ in range(400):
        rewards = np.ones((4, 3), np.float32)
        memory.add(random(3, 1), random(1), random(3, 1), rewards, random(3, 1), random(1), **flags)
    settings: dict[str, Any] = SETTINGS | {"reward_scale": 1.0, "saturation_cost": 0.0}
    learner = TD3(PROBE, **settings)
    for _ in range(300):
        learner.update(memory.sample(rng, 64, 3, 0.5))
    batch = memory.sample(rng, 200, 1, 0.5)
    values = learner.critic(batch.state, batch.actions)
    assert values.mean().item() == pytest.approx(value, abs=0.15)
    assert (values - value).abs().max() < 0.4


def test_actors_find_the_best_actions_of_a_known_reward() -> None:
    """One-step episodes with reward -sum_n |a_n - c_n|: agent n must act c_n whatever it sees."""
    best = torch.tensor([0.3, -0.5, 0.6])[:, None, None]
    learner = TD3(PROBE, **(SETTINGS | {"saturation_cost": 0.0, "reward_scale": 1.0, "hidden": (64,)}))
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        obs, actions = (2 * torch.rand((2, 3, 256, 1), generator=generator) - 1).unbind()
        reward = -(actions - best).abs().sum((0, 2))
        learner.update(Batch(obs, obs[0], actions, reward, obs, obs[0], torch.zeros(256)))
    obs = torch.linspace(-1, 1, 21).expand(3, 21)[..., None]
    assert (learner.actor(obs) - best).abs().max() < 0.15
