"""Losses against independent float64 references; learners that do not touch each other; problems with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from om2p_train import config
from om2p_train.algorithms import ALGORITHMS, find
from om2p_train.batches import Transitions
from om2p_train.learner import Learner
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams

from .conftest import toy_dataset, toy_task

SMALL = ["options.hidden=[16,16]", "optimizer.batch_size=8"]
ETA = "options.eta=0.7"
PRESETS = ["om2p", "om2p-paper", "om2p-released", "bc"]


def _settings(preset, *more):
    return [*SMALL, *([] if preset == "bc" else [ETA]), *more]


def _learner(preset, dataset, seeds, *settings):
    recipe = config.load(preset, dataset.task, None, settings=[*_settings(preset), *settings])
    algorithm = find(recipe.algorithm)(dataset.task, recipe.options, SeedStreams(seeds, INITIALISATION))
    learner = Learner(algorithm, Transitions(dataset), SeedStreams(seeds, SAMPLING), recipe.optimizer)
    return algorithm, learner


def _batch(preset, dataset, seeds=(0,)):
    recipe = config.load(preset, dataset.task, None, settings=_settings(preset))
    algorithm = find(recipe.algorithm)(dataset.task, recipe.options, SeedStreams(seeds, INITIALISATION))
    streams = SeedStreams(seeds, SAMPLING)
    return algorithm, Transitions(dataset).sample(streams, 8), algorithm.draw(streams, 8)


class Reference:
    """The equations once more, in numpy float64, one learner at a time."""

    def __init__(self, module, stack_index):
        self._layers = [
            (layer.weight[stack_index].double().numpy(), layer.bias[stack_index].double().numpy())
            for layer in [*module.hidden_layers, module.output_layer]
        ]
        self._norms = module.norms and [
            (norm.weight[stack_index].double().numpy(), norm.bias[stack_index].double().numpy())
            for norm in module.norms
        ]

    def __call__(self, *inputs):
        x = np.concatenate(inputs, -1)
        *hidden, last = self._layers
        for index, (weight, bias) in enumerate(hidden):
            z = x @ weight + bias
            x = z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
            if self._norms:
                scale, shift = self._norms[index]
                centred = x - x.mean(-1, keepdims=True)
                x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift
        return x @ last[0] + last[1]


def _numpy(tensors, k):
    items = tensors._asdict() if hasattr(tensors, "_asdict") else tensors
    return {name: value[k].double().numpy() for name, value in items.items()}


def _one_step(u, obs, eps, raw):
    zeros, ones = np.zeros((len(obs), 1)), np.ones((len(obs), 1))
    jump = u(obs, eps, zeros, ones)
    return np.clip(jump if raw else eps + jump, -1, 1)


@pytest.mark.parametrize("preset", ["om2p", "om2p-paper", "om2p-released"])
@torch.no_grad()
def test_om2p_losses_equal_their_equations(preset, random_dataset):
    algorithm, batch, noise = _batch(preset, random_dataset)
    # Targets that differ from their sources, so that confusing the two shows.
    for target, _ in algorithm.targets:
        for parameter in target.parameters():
            parameter.mul_(0.9)
    critic_loss, actor_loss = algorithm.critic_loss(batch, noise), algorithm.actor_loss(batch, noise)
    raw = preset == "om2p-released"
    for k in range(2):
        b, n = _numpy(batch, k), _numpy(noise, k)
        u, u_target = (Reference(net, k) for net in (algorithm.actor.net, algorithm.actor_target.net))
        q = [Reference(algorithm.critic.net, 2 * k + j) for j in range(2)]
        q_target = [Reference(algorithm.critic_target.net, 2 * k + j) for j in range(2)]

        # Eq. 7
        next_action = _one_step(u_target, b["next_obs"], n["eps_next"], raw)
        next_value = np.mean([net(b["next_obs"], next_action)[:, 0] for net in q_target], 0)
        y = b["rewards"] + 0.99 * b["mask"] * next_value
        expected = sum(np.mean((y - net(b["obs"], b["actions"])[:, 0]) ** 2) for net in q)
        assert critic_loss[k].item() == pytest.approx(expected, rel=1e-4)

        # Eq. 2 and Eq. 6
        r, t = n["times"][:, :1], n["times"][:, 1:]
        v = b["actions"] - n["eps"]

        def path(shift, u=u, b=b, n=n, r=r, t=t, v=v):
            return u(b["obs"], n["eps"] + (r + shift) * v, r + shift, t)

        du_dr = (path(1e-5) - path(-1e-5)) / 2e-5 if preset == "om2p" else 0.0
        square = ((path(0.0) - (v - (r - t) * du_dr)) ** 2).sum(-1)
        if preset == "om2p":
            square = square / (square + 1e-3) ** 0.5
        action = _one_step(u, b["obs"], n["eps_policy"], raw)
        value = np.mean([net(b["obs"], action)[:, 0] for net in q])
        if algorithm.options.normalize_q:
            value /= np.abs(np.mean([net(b["obs"], action)[:, 0] for net in q], 0)).mean()
        assert actor_loss[k].item() == pytest.approx(square.mean() - 0.7 * value, rel=1e-4)


@torch.no_grad()
def test_bc_loss_equals_its_equation(random_dataset):
    algorithm, batch, noise = _batch("bc", random_dataset)
    loss = algorithm.actor_loss(batch, noise)
    for k in range(2):
        b = _numpy(batch, k)
        error = np.tanh(Reference(algorithm.actor.net, k)(b["obs"])) - b["actions"]
        assert loss[k].item() == pytest.approx((error**2).sum(-1).mean(), rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_learner_never_touches_another(preset, random_dataset):
    algorithm, batch, noise = _batch(preset, random_dataset, seeds=(0, 1))  # K = 4
    losses = {"actor": algorithm.actor_loss(batch, noise)}
    if algorithm.critic is not None:
        losses["critic"] = algorithm.critic_loss(batch, noise)
    for name, loss in losses.items():
        for k in range(4):
            algorithm.zero_grad()
            loss[k].backward(retain_graph=True)
            for parameter in getattr(algorithm, name).parameters():
                rows = parameter.grad.flatten(1).abs().sum(1).view(4, -1).sum(1)  # critics have two rows a learner
                assert rows[k] > 0
                assert rows.sum() == rows[k]


@pytest.mark.parametrize("preset", ["om2p", "om2p-released"])
def test_the_actors_step_adds_nothing_to_the_critics_gradient(preset, random_dataset):
    """After an update the critic still holds the gradient of its own loss, on the same weights, batch and noise."""
    updated, learner = _learner(preset, random_dataset, [0])
    learner.update()
    twin, batch, noise = _batch(preset, random_dataset)
    twin.critic_loss(batch, noise).sum().backward()
    for name, parameter in updated.critic.named_parameters():
        assert parameter.requires_grad
        torch.testing.assert_close(parameter.grad, twin.critic.get_parameter(name).grad)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stacked_team_equals_its_seeds_run_one_by_one(preset, random_dataset):
    stacked, learner = _learner(preset, random_dataset, [0, 3, 1])
    for _ in range(20):
        learner.update()
    for index, seed in enumerate([0, 3, 1]):
        alone, single = _learner(preset, random_dataset, [seed])
        for _ in range(20):
            single.update()
        for name, value in alone.named_parameters():
            rows = len(value)
            block = stacked.get_parameter(name)[index * rows : (index + 1) * rows]
            torch.testing.assert_close(block, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_agents_of_a_team_equal_networks_run_alone(preset, random_dataset):
    algorithm, *_ = _batch(preset, random_dataset)
    obs, eps = torch.randn(2, 7, 5), torch.randn(2, 7, 2)
    together = algorithm.actor.act(obs, eps)
    for agent in range(2):
        kind = type(algorithm.actor)
        one = kind(SeedStreams([9], INITIALISATION), **{**algorithm.actor.architecture, "num_agents": 1})
        one.load_state_dict({name: v[agent : agent + 1] for name, v in algorithm.actor.state_dict().items()})
        torch.testing.assert_close(one.act(obs[agent : agent + 1], eps[agent : agent + 1])[0], together[agent])


def test_agents_and_seeds_start_from_different_weights(random_dataset):
    algorithm, _ = _learner("om2p", random_dataset, [0, 1])
    first = algorithm.actor.net.output_layer.weight.flatten(1)
    assert len(torch.unique(first, dim=0)) == 4


def test_targets_follow_by_polyak_averaging(random_dataset):
    algorithm, learner = _learner("om2p", random_dataset, [0], "optimizer.rho=0.25")
    before = [p.detach().clone() for target, _ in algorithm.targets for p in target.parameters()]
    learner.update()
    sources = [p for _, source in algorithm.targets for p in source.parameters()]
    targets = [p for target, _ in algorithm.targets for p in target.parameters()]
    assert len(algorithm.targets) == 2
    for old, source, target in zip(before, sources, targets, strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * source.detach())


@pytest.mark.parametrize(("terminal", "expected"), [(True, 1.0), (False, 1.0 / (1.0 - 0.5))])
def test_critic_values_of_a_constant_reward(terminal, expected):
    """One step, reward 1: the value is 1 if the episode terminates there, and 1 / (1 - gamma) if time ran out."""
    rng = np.random.default_rng(0)
    obs = np.zeros((64, 2, 1, 1))
    data = toy_dataset(obs, rng.uniform(-1, 1, (64, 1, 1, 1)), np.ones((64, 1, 1)), terminal=terminal)
    algorithm, learner = _learner(
        "om2p", data, [0], "options.gamma=0.5", "optimizer.rho=0.1", "optimizer.learning_rate=3e-3"
    )
    for _ in range(400):
        learner.update()
    values = algorithm.critic(torch.zeros(1, 9, 1), torch.linspace(-1, 1, 9).view(1, 9, 1))
    torch.testing.assert_close(values, torch.full_like(values, expected), rtol=0, atol=0.1)


def test_bc_recovers_a_linear_expert():
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (2000, 2, 2, 3))
    gain = rng.uniform(-0.3, 0.3, (2, 3, 2))
    actions = np.einsum("enx,nxa->ena", obs[:, 0], gain)[:, None]
    data = toy_dataset(obs, actions, np.zeros((2000, 1, 2)), terminal=True)
    algorithm, learner = _learner(
        "bc", data, [0], "options.hidden=[64]", "optimizer.batch_size=256", "optimizer.learning_rate=1e-2"
    )
    for _ in range(600):
        learner.update()
    inputs = torch.from_numpy(rng.uniform(-1, 1, (2, 100, 3))).float()
    expected = torch.einsum("nbx,nxa->nba", inputs, torch.from_numpy(gain).float())
    assert (algorithm.actor.act(inputs, torch.empty(0)) - expected).abs().max() < 0.05


def _two_modes(rewards_right=0.0):
    """20,000 actions at -0.8 and 0.8, each ± 0.05; reward where the action is positive."""
    rng = np.random.default_rng(0)
    side = rng.choice([-1.0, 1.0], 20_000)
    actions = (0.8 * side + 0.05 * rng.standard_normal(20_000))[:, None, None, None]
    rewards = (rewards_right * (side > 0))[:, None, None]
    return toy_dataset(np.zeros((20_000, 2, 1, 1)), actions, rewards, terminal=True)


def _train_on_modes(preset, eta, data, updates, seeds=(0, 1)):
    settings = [f"options.eta={eta}", "options.hidden=[96,96,96]", "optimizer.batch_size=256"]
    algorithm, learner = _learner(preset, data, list(seeds), *settings, "optimizer.learning_rate=1e-3")
    for _ in range(updates):
        learner.update()
    streams = SeedStreams(seeds, SAMPLING)
    eps = streams.normal(1, 4000, 1)
    with torch.no_grad():
        return algorithm.actor.act(torch.zeros(len(seeds), 4000, 1), eps).squeeze(-1), eps.squeeze(-1)


def test_om2p_keeps_both_modes_in_one_step():
    actions, _ = _train_on_modes("om2p", 0.0, _two_modes(), 1500)
    for one in actions:
        left, right = ((one - mode).abs() < 0.2 for mode in (-0.8, 0.8))
        assert (left | right).float().mean() >= 0.85
        assert 0.35 <= left.float().mean() <= 0.65
        assert 0.35 <= right.float().mean() <= 0.65


def test_the_papers_text_collapses_to_the_mean_action():
    actions, _ = _train_on_modes("om2p-paper", 0.0, _two_modes(), 800)
    for one in actions:
        assert one.abs().mean() < 0.25
        assert ((one.abs() - 0.8).abs() < 0.2).float().mean() < 0.1


def test_the_released_code_acts_with_the_mean_minus_the_noise():
    """Flow matching learns u(eps, 0, 1) = E[a] - eps; without eps added, the action is that: noise around the mean."""
    actions, eps = _train_on_modes("om2p-released", 0.0, _two_modes(), 800)
    assert (actions - (-eps).clamp(-1, 1)).abs().mean() < 0.15


def test_q_guidance_moves_om2p_to_the_better_mode():
    actions, _ = _train_on_modes("om2p", 2.0, _two_modes(rewards_right=1.0), 1500)
    for one in actions:
        assert ((one - 0.8).abs() < 0.25).float().mean() > 0.9


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_has_a_recipe_of_its_name(name):
    assert config.load(name, toy_task(1, 1, 1, 1), None, settings=_settings(name)).algorithm == name
