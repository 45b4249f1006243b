"""Every loss against its equations, once more in numpy float64, on fixed weights, batch and noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from om2p_train.algorithms.base import NormalizeQ, guidance
from om2p_train.batches import Transitions
from om2p_train.diffusion import EARLIEST
from om2p_train.streams import SAMPLING, SeedStreams
from om2p_train.team import ActionSpace, Team

from .conftest import toy_dataset
from .learners import Reference, gelu, numpy64, one_batch

GAMMA = 0.99


def _shift_targets(algorithm):
    """Targets that differ from their sources, so that confusing the two shows."""
    with torch.no_grad():
        for target, _ in algorithm.targets:
            for parameter in target.parameters():
                parameter.mul_(0.9)


def _twins(critic, k):
    return [Reference(critic.net, 2 * k + j) for j in range(2)]


def _q(net, obs, action):
    return net(obs, action)[..., 0]


def _q_of_many(net, obs, actions):
    """Values of actions [B, m, A] of every observation [B, O], one observation after the other."""
    return np.stack([_q(net, np.repeat(o[None], len(a), 0), a) for o, a in zip(obs, actions, strict=True)])


def _log_sum_exp(x):
    top = x.max(-1, keepdims=True)
    return (np.log(np.exp(x - top).sum(-1, keepdims=True)) + top)[..., 0]


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _one_step(u, obs, eps, raw=False):
    zeros, ones = np.zeros((len(obs), 1)), np.ones((len(obs), 1))
    jump = u(obs, eps, zeros, ones)
    return np.clip(jump if raw else eps + jump, -1, 1)


def _mean_flow_target(u, context, actions, eps, times, derivative, velocity=None):
    """u and v - (r - t) du/dr along the path of the given velocity, by central differences."""
    r, t = times[:, :1], times[:, 1:]
    a_r = eps + r * (actions - eps)
    v = actions - eps if velocity is None else velocity(a_r, r, actions - eps)

    def path(shift):
        return u(context, a_r + shift * v, r + shift, t)

    du_dr = (path(1e-5) - path(-1e-5)) / 2e-5 if derivative else 0.0
    return path(0.0), v - (r - t) * du_dr


def _adaptive(square, power):
    return square / (square + 1e-3) ** power


@pytest.mark.parametrize("preset", ["om2p", "om2p-paper", "om2p-released", "om2p-paper-gradient"])
@torch.no_grad()
def test_om2p(preset, random_dataset):
    power = 0.5 if preset == "om2p" else 0.0
    settings = ("options.eta=0.7", f"options.adaptive_power={power}")
    algorithm, batch, noise = one_batch(preset, random_dataset, [0], *settings)
    _shift_targets(algorithm)
    critic_loss, actor_loss = algorithm.critic_loss(batch, noise), algorithm.actor_loss(batch, noise)
    raw = preset == "om2p-released"
    for k in range(2):
        b, n = numpy64(batch, k), numpy64(noise, k)
        u, u_target = (Reference(net, k) for net in (algorithm.actor.net, algorithm.actor_target.net))
        q, q_target = _twins(algorithm.critic, k), _twins(algorithm.critic_target, k)

        # Eq. 7
        next_action = _one_step(u_target, b["next_obs"], n["eps_next"], raw)
        next_value = np.mean([_q(net, b["next_obs"], next_action) for net in q_target], 0)
        y = b["rewards"] + GAMMA * b["mask"] * next_value
        expected = sum(np.mean((y - _q(net, b["obs"], b["actions"])) ** 2) for net in q)
        assert critic_loss[k].item() == pytest.approx(expected, rel=1e-4)

        # Eq. 2 and Eq. 6
        exact = preset in ("om2p", "om2p-paper-gradient")
        guess, target = _mean_flow_target(u, b["obs"], b["actions"], n["eps"], n["times"], exact)
        square = ((guess - target) ** 2).sum(-1)
        if power > 0:
            square = _adaptive(square, power)
        action = _one_step(u, b["obs"], n["eps_policy"], raw)
        values = np.mean([_q(net, b["obs"], action) for net in q], 0)
        assert actor_loss[k].item() == pytest.approx(square.mean() - 0.7 * values.mean(), rel=1e-4)


@torch.no_grad()
def test_om2ps_normalised_guidance_and_its_ablations(random_dataset):
    settings = ["options.eta=0.7", "options.normalize_q=size", "options.bc_weight=0"]
    algorithm, batch, noise = one_batch("om2p", random_dataset, [0], *settings)
    without, _, _ = one_batch("om2p", random_dataset, [0], "options.eta=0")
    both, _, _ = one_batch("om2p", random_dataset, [0], *settings[:2], "options.bc_weight=0.25")
    loss, behavior, mixed = (one.actor_loss(batch, noise) for one in (algorithm, without, both))
    for k in range(2):
        b, n = numpy64(batch, k), numpy64(noise, k)
        action = _one_step(Reference(algorithm.actor.net, k), b["obs"], n["eps_policy"])
        values = np.mean([_q(net, b["obs"], action) for net in _twins(algorithm.critic, k)], 0)
        assert loss[k].item() == pytest.approx(-0.7 * values.mean() / np.abs(values).mean(), rel=1e-4)
    torch.testing.assert_close(mixed, 0.25 * behavior + loss)


def test_guidance_by_slope_pulls_every_learner_with_the_weight(random_dataset):
    algorithm, batch, _ = one_batch("om2p", random_dataset, [0, 1])
    pulls = {}
    for normalize in NormalizeQ:
        for scale in (1.0, 100.0):  # of rewards, and so of values
            actions = batch.actions.clone().requires_grad_()
            critic = lambda obs, at, scale=scale: scale * algorithm.critic(obs, at)  # noqa: E731
            climbed = guidance(critic, algorithm.actor.space, batch.obs, actions, normalize, 0.3)
            climbed.sum().backward()
            assert actions.grad is not None
            pulls[normalize, scale] = actions.grad * actions.shape[1]
    plain, size, slope = (pulls[normalize, 1.0] for normalize in NormalizeQ)
    torch.testing.assert_close(pulls[NormalizeQ.NONE, 100.0], 100 * plain)
    torch.testing.assert_close(pulls[NormalizeQ.SIZE, 100.0], size)
    torch.testing.assert_close(pulls[NormalizeQ.SLOPE, 100.0], slope)
    length = slope.square().sum(-1).mean(-1).sqrt()  # [K]
    torch.testing.assert_close(length, torch.full_like(length, 0.3))
    torch.testing.assert_close(F.normalize(slope, dim=-1), F.normalize(plain, dim=-1))  # and in Q's own direction


def test_guidance_by_slope_leaves_out_padding_and_flat_critics():
    space = ActionSpace(Team(3, (1, 2), discrete=False), 1)
    actions = torch.zeros(2, 4, 2, requires_grad=True)
    flat = lambda obs, at: 0.0 * at.sum(-1).unsqueeze(1).expand(-1, 2, -1)  # noqa: E731
    steep = lambda obs, at: (1e-25 * at).sum(-1).unsqueeze(1).expand(-1, 2, -1)  # noqa: E731
    for critic, expected in ((flat, 0.0), (steep, 7.0)):
        actions.grad = None
        guidance(critic, space, actions, actions, NormalizeQ.SLOPE, 7.0).sum().backward()
        assert actions.grad is not None
        length = (4 * actions.grad).square().sum(-1).mean(-1).sqrt()
        torch.testing.assert_close(length, torch.full((2,), expected))
    assert (actions.grad[0, :, 1] == 0).all()


@torch.no_grad()
def test_bc(random_dataset):
    algorithm, batch, noise = one_batch("bc", random_dataset, [0])
    loss = algorithm.actor_loss(batch, noise)
    for k in range(2):
        b = numpy64(batch, k)
        error = np.tanh(Reference(algorithm.actor.net, k)(b["obs"])) - b["actions"]
        assert loss[k].item() == pytest.approx((error**2).sum(-1).mean(), rel=1e-5)


@torch.no_grad()
def test_bc_of_choices_is_their_cross_entropy(discrete_dataset):
    algorithm, batch, noise = one_batch("bc", discrete_dataset, [0])
    loss = algorithm.actor_loss(batch, noise)
    for k in range(2):
        b = numpy64(batch, k)
        probability = _softmax(Reference(algorithm.actor.net, k)(b["obs"]))
        chosen = probability[np.arange(8), b["actions"].argmax(-1)]
        assert loss[k].item() == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


def _td3_target(algorithm, b, k):
    """r + gamma (1 - terminated) min_k Q'_k(o', pi'(o'))."""
    next_action = np.tanh(Reference(algorithm.policy_target.net, k)(b["next_obs"]))
    values = [_q(net, b["next_obs"], next_action) for net in _twins(algorithm.critic_target, k)]
    return b["rewards"] + GAMMA * b["mask"] * np.minimum(*values)


@pytest.mark.parametrize("proposal", ["uniform", "uniform+policy"])
@torch.no_grad()
def test_ma_cql(proposal, random_dataset):
    settings = ["options.alpha=1.5", f"options.proposal={proposal}", "options.action_cost=0.2"]
    settings += ["options.saturation_cost=0.3"]
    algorithm, batch, noise = one_batch("ma-cql", random_dataset, [0], *settings)
    _shift_targets(algorithm)
    critic_loss, actor_loss = algorithm.critic_loss(batch, noise), algorithm.actor_loss(batch, noise)
    for k in range(2):
        b, n = numpy64(batch, k), numpy64(noise, k)
        pi, q = Reference(algorithm.actor.net, k), _twins(algorithm.critic, k)
        assert n["uniform"].min() >= -1
        assert n["uniform"].max() <= 1
        actions, log_density = [n["uniform"]], [np.full((8, 10), 2 * math.log(0.5))]
        if proposal == "uniform+policy":
            for name, obs in (("around", "obs"), ("around_next", "next_obs")):
                mean = np.tanh(pi(b[obs]))[:, None]
                actions.append(np.clip(mean + 0.2 * n[name], -1, 1))
                density = np.exp(-(n[name] ** 2) / 2) / (0.2 * math.sqrt(2 * math.pi))
                log_density.append(np.log(density).sum(-1))
        joined, log_density = np.concatenate(actions, 1), np.concatenate(log_density, 1)
        y = _td3_target(algorithm, b, k)
        expected = 0.0
        for net in q:
            data = _q(net, b["obs"], b["actions"])
            above = _log_sum_exp(_q_of_many(net, b["obs"], joined) - log_density)
            expected += np.mean((y - data) ** 2) + 1.5 * np.mean(above - data)
        assert critic_loss[k].item() == pytest.approx(expected, rel=1e-4)

        raw = pi(b["obs"])
        action = np.tanh(raw)
        expected = 0.2 * np.mean(action**2) + 0.3 * np.mean(raw**2) - _q(q[0], b["obs"], action).mean()
        assert actor_loss[k].item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_ma_cql_of_choices_sums_exactly(discrete_dataset):
    algorithm, batch, noise = one_batch("ma-cql", discrete_dataset, [0], "options.alpha=1.5")
    _shift_targets(algorithm)
    loss = algorithm.critic_loss(batch, noise)
    every = np.repeat(np.eye(3)[None], 8, 0)
    for k in range(2):
        b = numpy64(batch, k)
        q, q_target = _twins(algorithm.critic, k), _twins(algorithm.policy_target.critic, k)
        next_values = np.minimum(*[_q_of_many(net, b["next_obs"], every) for net in q_target]).max(-1)
        y = b["rewards"] + GAMMA * b["mask"] * next_values
        expected = 0.0
        for net in q:
            data = _q(net, b["obs"], b["actions"])
            above = _log_sum_exp(_q_of_many(net, b["obs"], every))
            expected += np.mean((y - data) ** 2) + 1.5 * np.mean(above - data)
        assert loss[k].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("search", ["softmax", "cross-entropy"])
@torch.no_grad()
def test_omar(search, random_dataset):
    settings = ["options.c=0.7", f"options.search={search}", "options.action_cost=0.2", "options.search_elites=3"]
    settings += ["options.saturation_cost=0.3"]
    algorithm, batch, noise = one_batch("omar", random_dataset, [0], *settings)
    loss = algorithm.actor_loss(batch, noise)
    for k in range(2):
        b, n = numpy64(batch, k), numpy64(noise, k)
        q = _twins(algorithm.critic, k)[0]
        raw = Reference(algorithm.actor.net, k)(b["obs"])
        action = np.tanh(raw)
        value = _q(q, b["obs"], action)
        best = np.empty_like(action)
        for row in range(8):  # one observation at a time
            obs = np.repeat(b["obs"][row][None], 10, 0)
            mu, sigma = np.zeros(2), np.full(2, 2.0)
            candidates = [(value[row], action[row])]
            for eps in n["search"][:, row]:
                samples = np.clip(mu + sigma * eps, -1, 1)
                values = _q(q, obs, samples)
                candidates.append((values.max(), samples[values.argmax()]))
                if search == "softmax":
                    weight = _softmax(values)
                else:
                    weight = np.isin(np.arange(10), np.argsort(values)[-3:]) / 3
                mu = weight @ samples
                sigma = np.maximum(np.sqrt(weight @ (samples - mu) ** 2), 1e-3)
            best[row] = max(candidates, key=lambda pair: pair[0])[1]
        cost = 0.2 * np.mean(action**2) + 0.3 * np.mean(raw**2)
        expected = 0.7 * np.mean((action - best) ** 2) - 0.3 * value.mean() + cost
        assert loss[k].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("normalize", ["size", "none"])
@torch.no_grad()
def test_ma_fql(normalize, random_dataset):
    settings = ["options.alpha=3", f"options.normalize_q={normalize}", "options.flow_steps=4"]
    algorithm, batch, noise = one_batch("ma-fql", random_dataset, [0], *settings)
    _shift_targets(algorithm)
    critic_loss, actor_loss = algorithm.critic_loss(batch, noise), algorithm.actor_loss(batch, noise)
    for k in range(2):
        b, n = numpy64(batch, k), numpy64(noise, k)
        pi, v = Reference(algorithm.policy.net, k), Reference(algorithm.flow, k)
        q, q_target = _twins(algorithm.critic, k), _twins(algorithm.critic_target, k)

        next_action = np.clip(pi(b["next_obs"], n["z_next"]), -1, 1)
        next_value = np.mean([_q(net, b["next_obs"], next_action) for net in q_target], 0)
        y = b["rewards"] + GAMMA * b["mask"] * next_value
        expected = sum(np.mean((y - _q(net, b["obs"], b["actions"])) ** 2) for net in q)
        assert critic_loss[k].item() == pytest.approx(expected, rel=1e-4)

        x_t = (1 - n["time"]) * n["eps"] + n["time"] * b["actions"]
        flow = np.mean((v(b["obs"], x_t, n["time"]) - (b["actions"] - n["eps"])) ** 2)
        x = n["z"]
        for step in range(4):
            x = x + v(b["obs"], x, np.full((8, 1), step / 4)) / 4
        action = pi(b["obs"], n["z"])
        distillation = np.mean((action - np.clip(x, -1, 1)) ** 2)
        values = np.mean([_q(net, b["obs"], np.clip(action, -1, 1)) for net in q], 0)
        gain = values.mean() / np.abs(values).mean() if normalize == "size" else values.mean()
        assert actor_loss[k].item() == pytest.approx(flow + 3 * distillation - gain, rel=1e-4)


@torch.no_grad()
def test_ma_sfbcs_score_matching(random_dataset):
    algorithm, batch, noise = one_batch("ma-sfbc", random_dataset, [0])
    loss = algorithm.actor_loss(batch, noise)
    score = algorithm.policy.score
    for k in range(2):
        b, n = numpy64(batch, k), numpy64(noise, k)
        assert n["time"].min() >= EARLIEST
        steps = [np.linspace(0, time, 4001) for time in n["time"][:, 0]]
        integral = np.array([np.trapezoid(0.1 + (20 - 0.1) * step, step) for step in steps])[:, None]
        alpha = np.exp(-0.5 * integral)  # alpha_t = exp(-1/2 int beta)
        points = alpha * b["actions"] + np.sqrt(1 - alpha**2) * n["eps"]
        angle = n["time"] * algorithm.policy.time.frequencies[k].double().numpy()
        x = np.concatenate([b["obs"], points, np.cos(angle), np.sin(angle)], -1)
        for layer, skip in zip(score.layers, score.skips, strict=True):
            plain, direct = (x @ one.weight[k].double().numpy() + one.bias[k].double().numpy() for one in (layer, skip))
            x = direct + gelu(plain)
        guess = x @ score.output_layer.weight[k].double().numpy() + score.output_layer.bias[k].double().numpy()
        assert loss[k].item() == pytest.approx(((guess - n["eps"]) ** 2).sum(-1).mean(), rel=1e-4)


@pytest.mark.parametrize("terminal", [True, False])
@torch.no_grad()
def test_ma_sfbcs_critic_regresses_planned_returns(terminal):
    rng = np.random.default_rng(1)
    data = toy_dataset(
        rng.uniform(-1, 1, (4, 4, 2, 5)),
        rng.uniform(-1, 1, (4, 3, 2, 2)),
        rng.uniform(-1, 1, (4, 3, 2)),
        terminal=terminal,
        length=3,
    )
    algorithm, batch, noise = one_batch("ma-sfbc", data, [0], "options.gamma=0.8", "options.planning_samples=4")
    first, second = (stage.prepare for stage in algorithm.stages(100)[1:])
    transitions = Transitions(data)
    first(transitions, SeedStreams([0], SAMPLING))
    observed = algorithm.returns[0].double().numpy().reshape(4, 3, 2)
    second(transitions, SeedStreams([0], SAMPLING))
    planned = algorithm.returns[0].double().numpy().reshape(4, 3, 2)

    rewards = data.episodes.rewards.astype(float).reshape(4, 3, 2)
    beyond = 0.0 if terminal else rewards.mean((0, 1)) / (1 - 0.8)
    expected = np.zeros((4, 4, 2))
    expected[:, 3] = beyond
    for t in (2, 1, 0):
        expected[:, t] = rewards[:, t] + 0.8 * expected[:, t + 1]
    lowest = expected[:, :3].min((0, 1))
    span = expected[:, :3].max((0, 1)) - lowest
    np.testing.assert_allclose(observed, (expected[:, :3] - lowest) / span, rtol=1e-5, atol=1e-6)

    # V from the same behaviour samples, which the same stream draws again.
    obs = transitions.obs[transitions.obs_index + 1].transpose(0, 1)
    actions = algorithm.policy.samples(obs, SeedStreams([0], SAMPLING).normal(2, 12, 4, 2)).double().numpy()
    value = np.empty((12, 2))
    for k in range(2):
        nets = _twins(algorithm.critic, k)
        q = np.mean([_q_of_many(net, obs[k].double().numpy(), actions[k]) for net in nets], 0)
        value[:, k] = (_softmax(20 * q) * q).sum(-1)
    value = lowest + span * value.reshape(4, 3, 2)
    expected[:, 2] = rewards[:, 2] + (0.0 if terminal else 0.8 * value[:, 2])
    for t in (1, 0):
        expected[:, t] = rewards[:, t] + 0.8 * np.maximum(expected[:, t + 1], value[:, t])
    np.testing.assert_allclose(planned, (expected[:, :3] - lowest) / span, rtol=1e-4, atol=1e-5)

    loss = algorithm.critic_loss(batch, noise)
    for k in range(2):
        b = numpy64(batch, k)
        target = planned.reshape(12, 2)[batch.rows[0].numpy(), k]
        expected_loss = sum(
            np.mean((target - _q(net, b["obs"], b["actions"])) ** 2) for net in _twins(algorithm.critic, k)
        )
        assert loss[k].item() == pytest.approx(expected_loss, rel=1e-4)


@pytest.mark.parametrize("data", ["random_dataset", "discrete_dataset"])
@torch.no_grad()
def test_vgm2p(data, request):
    settings = ["options.expectile=0.8", "options.guidance=2", "options.drop_probability=0.4"]
    algorithm, batch, noise = one_batch("vgm2p", request.getfixturevalue(data), [0], *settings)
    _shift_targets(algorithm)
    critic_loss, actor_loss = algorithm.critic_loss(batch, noise), algorithm.actor_loss(batch, noise)
    b = [numpy64(batch, k) for k in range(2)]
    both = range(2)
    v = [Reference(algorithm.v.net, k) for k in both]
    v_tot = sum(v[k](b[k]["obs"])[:, 0] for k in both)
    next_v = sum(b[k]["mask"] * v[k](b[k]["next_obs"])[:, 0] for k in both)
    y = np.mean([b[k]["rewards"] for k in both], 0) + GAMMA * next_v

    def totals(critic):
        return [sum(_q(_twins(critic, k)[j], b[k]["obs"], b[k]["actions"]) for k in both) for j in range(2)]

    advantage = np.minimum(*totals(algorithm.q_target)) - v_tot
    v_loss = np.mean(np.where(advantage > 0, 0.8, 0.2) * advantage**2)
    q_loss = sum(np.mean((y - q_tot) ** 2) for q_tot in totals(algorithm.q))
    assert critic_loss.sum().item() == pytest.approx(v_loss + q_loss, rel=1e-4)

    good = advantage >= 0
    dropped = noise["drop"][0].numpy() < 0.4
    assert 0 < good.sum() < 8
    assert 0 < dropped.sum() < 8
    condition = np.stack([~good & ~dropped, good & ~dropped], -1).astype(float)
    for k in both:
        n = numpy64({key: noise[key] for key in ("eps", "times")}, k)
        u = Reference(algorithm.actor.net, k)
        actions = 2 * b[k]["actions"] - 1 if data == "discrete_dataset" else b[k]["actions"]

        def guided(a_r, r, velocity, u=u, k=k):
            free = u(b[k]["obs"], np.zeros((8, 2)), a_r, r, r)
            return np.where(dropped[:, None], velocity, 2 * velocity + (1 - 2) * free)

        context = np.concatenate([b[k]["obs"], condition], -1)
        guess, target = _mean_flow_target(u, context, actions, n["eps"], n["times"], True, guided)
        expected = _adaptive(((guess - target) ** 2).sum(-1), 0.5).mean()
        assert actor_loss[k].item() == pytest.approx(expected, rel=2e-4)
