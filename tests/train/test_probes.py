"""Problems whose answer is known: values, linear experts, the best of a known Q, densities, modes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from om2p_train.batches import DataConfig, TimeLimit, Transitions
from om2p_train.diffusion import EARLIEST, dpm_solver, signal_and_noise
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams

from .conftest import toy_dataset
from .learners import make_algorithm, make_learner, train

WITH_CRITIC = ["om2p", "ma-cql", "omar", "ma-fql", "vgm2p"]


def _one_state(actions, rewards, *, terminal=True, discrete=False):
    """Episodes of one step in one state: actions [E, A], rewards [E]."""
    count, size = actions.shape
    return toy_dataset(
        np.zeros((count, 2, 1, 1)),
        actions.reshape(count, 1, 1, size),
        rewards.reshape(count, 1, 1),
        terminal=terminal,
        discrete=discrete,
    )


def _values(algorithm, actions):
    critic = algorithm.q if hasattr(algorithm, "q") else algorithm.critic
    return critic(torch.zeros(1, len(actions), 1), actions[None])[0]


# Values


@pytest.mark.parametrize("name", WITH_CRITIC)
@pytest.mark.parametrize(("terminal", "expected"), [(True, 1.0), (False, 1.0 / (1.0 - 0.5))])
def test_critic_values_of_a_constant_reward(name, terminal, expected):
    """One step, reward 1: the value is 1 if the episode terminates there, and 1 / (1 - gamma) if time ran out."""
    actions = np.random.default_rng(0).uniform(-1, 1, (64, 1))
    data = _one_state(actions, np.ones(64), terminal=terminal)
    settings = ["options.gamma=0.5", "optimizer.rho=0.1", "optimizer.learning_rate=3e-3"]
    settings += ["options.alpha=0"] if name in ("ma-cql", "omar") else []
    algorithm = train(name, data, [0], 400, *settings)
    values = _values(algorithm, torch.linspace(-0.9, 0.9, 9)[:, None])
    torch.testing.assert_close(values, torch.full_like(values, expected), rtol=0, atol=0.1)


def test_a_time_limit_can_be_taken_for_an_end():
    data = _one_state(np.zeros((64, 1)), np.ones(64), terminal=False)
    for limit, mask in ((TimeLimit.CONTINUE, 1.0), (TimeLimit.TERMINAL, 0.0)):
        batch = Transitions(data, config=DataConfig(time_limit=limit)).sample(SeedStreams([0], SAMPLING), 8)
        assert (batch.mask == mask).all()


def test_values_of_a_chain_of_two_states():
    """A reward of 1 at the end of the second step: its value is 1 there and gamma one step before."""
    obs = np.zeros((64, 3, 1, 1))
    obs[:, 1], obs[:, 2] = 1.0, 2.0
    rewards = np.zeros((64, 2, 1))
    rewards[:, 1] = 1.0
    data = toy_dataset(obs, np.zeros((64, 2, 1, 1)), rewards, terminal=True, length=2)
    settings = ["options.gamma=0.7", "optimizer.rho=0.1", "optimizer.learning_rate=3e-3", "options.eta=0.1"]
    algorithm = train("om2p", data, [0], 500, *settings)
    values = algorithm.critic(torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 2, 1))[0]
    torch.testing.assert_close(values, torch.tensor([[0.7, 1.0], [0.7, 1.0]]), rtol=0, atol=0.08)


def test_conservative_values_fall_where_there_are_no_data():
    rng = np.random.default_rng(0)
    actions = rng.uniform(0.2, 0.8, (500, 1))
    data = _one_state(actions, np.ones(500))
    gap = {}
    for alpha in (0.0, 1.0):
        settings = [f"options.alpha={alpha}", "options.gamma=0.5", "optimizer.learning_rate=3e-3"]
        algorithm = train("ma-cql", data, [0], 300, *settings)
        inside, outside = (_values(algorithm, torch.tensor([[at]])).mean() for at in (0.5, -0.8))
        gap[alpha] = (inside - outside).item()
    assert gap[1.0] > gap[0.0] + 1.0


def test_discrete_conservative_q_takes_the_best_choice_of_the_data():
    rng = np.random.default_rng(0)
    choice = rng.choice([0, 1], 500)  # choice 2 is never seen
    data = _one_state(np.eye(3)[choice], np.where(choice == 1, 1.0, 0.0), discrete=True)
    algorithm = train("ma-cql", data, [0], 300, "optimizer.learning_rate=3e-3", "options.gamma=0.5")
    action = algorithm.policy.act(torch.zeros(1, 1, 1), torch.empty(1, 1, 0))
    assert action.flatten().tolist() == [0, 1, 0]


def test_the_teams_value_is_the_sum_of_its_agents_terms():
    """Two agents, one step; the team's reward is their mean: Q_tot recovers it for actions that were never joint."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (4000, 1, 2, 1))
    rewards = np.stack([actions[:, :, 0, 0], -2.0 * actions[:, :, 1, 0]], -1)
    data = toy_dataset(np.zeros((4000, 2, 2, 1)), actions, rewards, terminal=True)
    settings = ["optimizer.batch_size=64", "optimizer.learning_rate=3e-3", "network.hidden=[32,32]"]
    algorithm = train("vgm2p", data, [0], 500, *settings)
    probe = torch.tensor([[-0.5, 0.0, 0.7], [0.5, 0.4, -0.7]])  # [N, B]
    total = algorithm.q(torch.zeros(2, 3, 1), probe[..., None]).sum(0)  # [2, B]
    expected = (probe[0] - 2 * probe[1]) / 2
    torch.testing.assert_close(total, expected.expand(2, -1), rtol=0, atol=0.15)


# Cloning


def test_bc_recovers_a_linear_expert():
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (2000, 2, 2, 3))
    gain = rng.uniform(-0.3, 0.3, (2, 3, 2))
    actions = np.einsum("enx,nxa->ena", obs[:, 0], gain)[:, None]
    data = toy_dataset(obs, actions, np.zeros((2000, 1, 2)), terminal=True)
    settings = ["network.hidden=[64]", "optimizer.batch_size=256", "optimizer.learning_rate=1e-2"]
    algorithm = train("bc", data, [0], 600, *settings)
    inputs = torch.from_numpy(rng.uniform(-1, 1, (2, 100, 3))).float()
    expected = torch.einsum("nbx,nxa->nba", inputs, torch.from_numpy(gain).float())
    assert (algorithm.policy.act(inputs, torch.empty(2, 100, 0)) - expected).abs().max() < 0.05


@pytest.mark.parametrize(("name", "least"), [("bc", 0.9), ("bc-flow", 0.85), ("vgm2p", 0.85), ("ma-sfbc", 0.7)])
def test_cloning_recovers_a_rule_of_choices(name, least):
    """Three choices, each where one of three observations is the largest."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (2000, 2, 1, 3))
    choice = obs[:, 0, 0].argmax(-1)
    data = toy_dataset(obs, np.eye(3)[choice][:, None, None], np.zeros((2000, 1, 1)), terminal=True, discrete=True)
    settings = ["network.hidden=[64,64]", "optimizer.batch_size=128", "optimizer.learning_rate=3e-3"]
    if name == "ma-sfbc":
        settings += ["options.score_hidden=[64,64]", "options.solver_evaluations=15", "options.behavior_share=0.99"]
    algorithm = train(name, data, [0], 800, *settings)
    inputs = torch.from_numpy(rng.uniform(-1, 1, (1, 500, 3))).float()
    actions = algorithm.policy.act(inputs, SeedStreams([0], SAMPLING).normal(1, 500, algorithm.policy.noise_dim))
    assert (actions.argmax(-1) == inputs.argmax(-1)).float().mean() > least


def test_agents_of_different_sizes_leave_their_padding_alone():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (50, 1, 2, 3))
    actions[:, :, 1, 1:] = 0.0  # agent 1 has one component
    data = toy_dataset(rng.uniform(-1, 1, (50, 2, 2, 4)), actions, np.ones((50, 1, 2)), terminal=True, act_dims=(3, 1))
    for name in ("bc", "om2p", "omar", "ma-fql", "ma-sfbc", "vgm2p"):
        algorithm = train(name, data, [0, 1], 5)
        acted = algorithm.policy.act(torch.randn(4, 20, 4), torch.randn(4, 20, algorithm.policy.noise_dim))
        assert (acted[1::2, :, 1:] == 0).all(), name
        assert (acted[1::2, :, 0] != 0).any(), name
        assert (acted[0::2] != 0).all(-1).any(), name


# OMAR's search


class _Paraboloid(torch.nn.Module):
    """Q_1 = -|a - peak|^2 with a far local optimum at `trap`, whatever the observation."""

    def __init__(self, peak, trap):
        super().__init__()
        self._peak, self._trap = torch.tensor(peak), torch.tensor(trap)

    def _q(self, actions):
        near, far = ((actions - at).square().sum(-1) for at in (self._peak, self._trap))
        return torch.exp(-4.0 * near) + 0.5 * torch.exp(-4.0 * far)

    def first_of_many(self, obs, actions):
        del obs
        return 10.0 * self._q(actions)


@pytest.mark.parametrize("search", ["softmax", "cross-entropy"])
def test_omars_search_finds_the_best_of_a_known_q(search, random_dataset):
    settings = [f"options.search={search}", "options.search_samples=40", "options.search_rounds=6"]
    algorithm = make_algorithm("omar", random_dataset, [0], *settings)
    peak, trap = [0.5, -0.4], [-0.6, 0.6]
    critic = _Paraboloid(peak, trap)
    algorithm.critic = critic
    stuck = torch.tensor(trap).expand(2, 64, 2)  # a policy that sits on the local optimum
    eps = SeedStreams([0], SAMPLING).normal(2, 6, 64, 40, 2)
    found = algorithm.search(torch.zeros(2, 64, 5), stuck, 10.0 * critic._q(stuck), eps)
    assert ((found - torch.tensor(peak)).norm(dim=-1) < 0.1).float().mean() > 0.8
    # Where the policy is better than every sample, it is kept.
    best = torch.tensor(peak).expand(2, 64, 2)
    kept = algorithm.search(torch.zeros(2, 64, 5), best, 10.0 * critic._q(best), eps)
    torch.testing.assert_close(kept, best, rtol=0, atol=1e-3)


def test_omar_leaves_the_local_optimum_that_ma_cql_climbs():
    """One state, uniform actions, a low hill around 0.6 and a high narrow one around -0.7."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (8000, 1))
    hills = 3.0 * np.exp(-30 * (actions[:, 0] + 0.7) ** 2) + np.exp(-4 * (actions[:, 0] - 0.5) ** 2)
    data = _one_state(actions, hills)
    settings = [
        "options.alpha=0",
        "options.action_cost=0",
        "network.hidden=[32,32]",
        "optimizer.batch_size=128",
        "optimizer.learning_rate=3e-3",
    ]
    climbed = train("ma-cql", data, list(range(6)), 500, *settings)
    searched = train("omar", data, list(range(6)), 500, *settings, "options.c=0.9")
    obs, none = torch.zeros(6, 1, 1), torch.empty(6, 1, 0)
    assert (climbed.policy.act(obs, none).flatten() > 0).any(), "no actor was caught by the low hill"
    torch.testing.assert_close(searched.policy.act(obs, none).flatten(), torch.full((6,), -0.7), rtol=0, atol=0.2)


# Densities and modes


def test_the_diffusion_solver_samples_a_known_density():
    """Noise of the exact score of two Gaussians at +-0.8: the samples are theirs (Kolmogorov-Smirnov)."""
    centre, width = torch.tensor([-0.8, 0.8], dtype=torch.float64), 0.2

    def noise_of(x, time):
        alpha, sigma = signal_and_noise(torch.tensor(time, dtype=torch.float64))
        variance = alpha**2 * width**2 + sigma**2
        away = x[..., None] - alpha * centre
        weight = torch.softmax(-away.square() / (2 * variance), -1)
        return sigma * (weight * away / variance).sum(-1)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, generator=generator, dtype=torch.float64)
    expected = torch.linspace(-2, 2, 401, dtype=torch.float64)
    distribution = torch.special.ndtr((expected[:, None] - centre) / width).mean(-1)

    def distance(evaluations):
        samples = dpm_solver(noise_of, start, evaluations)
        empirical = torch.searchsorted(samples.sort().values, expected).double() / len(samples)
        return (empirical - distribution).abs().max().item()

    # 1.95 / sqrt(20,000) = 0.0138 is the test's bound at a level of 0.1%; it is passed with many steps, not with three.
    assert distance(60) < 0.0138
    assert distance(9) > 0.0138


def test_the_flow_samples_a_known_density(random_dataset):
    """Euler steps along the exact velocity that carries N(0, 1) to two Gaussians at +-0.5: the samples are theirs."""
    algorithm = make_algorithm("ma-fql", random_dataset, [0], "options.flow_steps=100")
    centre, width = torch.tensor([-0.5, 0.5]), 0.12

    class ExactVelocity(torch.nn.Module):
        def forward(self, inputs):
            x, t = inputs[..., -3:-1], inputs[..., -1:]  # (o, x_t, t)
            variance = (1 - t) ** 2 + (t * width) ** 2
            away = x[..., None] - (t * centre)[:, :, None]  # [K, B, A, 2]
            weight = torch.softmax(-away.square() / (2 * variance[..., None]), -1)
            mean_action = centre + (t * width**2 / variance)[..., None] * away  # E[a | x_t, mode]
            action = (weight * mean_action).sum(-1)
            return (action - x) / (1 - t)  # E[a - eps | x_t]

    algorithm.flow = ExactVelocity()
    start = SeedStreams([0], SAMPLING).normal(2, 10_000, 2)
    samples = algorithm.flow_actions(torch.zeros(2, 10_000, 5), start).flatten().double()
    grid = torch.linspace(-0.95, 0.95, 381, dtype=torch.float64)
    distribution = torch.special.ndtr((grid[:, None] - centre.double()) / width).mean(-1)
    empirical = torch.searchsorted(samples.sort().values, grid).double() / len(samples)
    assert (empirical - distribution).abs().max() < 1.95 / math.sqrt(len(samples))


def test_the_solver_is_of_third_order():
    """Halving the step in an exactly known flow (one Gaussian) divides the error by about 2^3."""
    alpha, sigma = signal_and_noise(torch.tensor([EARLIEST, 1.0], dtype=torch.float64))
    width = 0.5
    spread = (alpha**2 * width**2 + sigma**2).sqrt()

    def noise_of(x, time):
        a, s = signal_and_noise(torch.tensor(time, dtype=torch.float64))
        return s * x / (a**2 * width**2 + s**2)

    start = torch.tensor([1.0], dtype=torch.float64)
    exact = (spread[0] / spread[1] * start).item()
    errors = [abs(dpm_solver(noise_of, start, 3 * steps).item() - exact) for steps in (20, 40, 80)]
    for coarse, fine in itertools.pairwise(errors):
        assert 6.0 < coarse / fine < 11.0


def _two_modes(slope=0.0):
    """20,000 actions at -0.8 and 0.8, each +- 0.05; the reward is `slope` times the action."""
    rng = np.random.default_rng(0)
    side = rng.choice([-1.0, 1.0], 20_000)
    actions = (0.8 * side + 0.05 * rng.standard_normal(20_000))[:, None]
    return _one_state(actions, slope * actions[:, 0])


def _samples_of(name, data, updates, *settings):
    wide = ["network.hidden=[64,64]", "optimizer.batch_size=128", "optimizer.learning_rate=2e-3"]
    algorithm = train(name, data, [0], updates, *wide, *settings)
    eps = SeedStreams([0], SAMPLING).normal(1, 4000, algorithm.policy.noise_dim)
    with torch.no_grad():
        return algorithm.policy.act(torch.zeros(1, 4000, 1), eps).flatten(), eps.squeeze()


def _shares(actions):
    """Shares of samples within 0.2 of the left and of the right mode."""
    return tuple(((actions - mode).abs() < 0.2).float().mean().item() for mode in (-0.8, 0.8))


@pytest.mark.parametrize(
    ("name", "updates", "settings", "least"),
    [
        ("om2p", 1000, ["options.eta=0"], 0.35),
        ("ma-fql", 1500, ["options.alpha=100", "options.normalize_q=none"], 0.3),  # no reward: the distillate alone
        (
            "ma-sfbc",
            1500,
            ["options.score_hidden=[64,64]", "options.solver_evaluations=30", "options.behavior_share=0.99"],
            0.1,  # a score that is a little off near pure noise tilts the balance
        ),
    ],
)
def test_generative_policies_keep_both_modes_without_values(name, updates, settings, least):
    left, right = _shares(_samples_of(name, _two_modes(), updates, *settings)[0])
    assert left + right >= 0.8
    assert min(left, right) >= least


def test_the_papers_text_collapses_to_the_mean_action():
    samples, _ = _samples_of("om2p-paper", _two_modes(), 800, "options.eta=0")
    assert samples.abs().mean() < 0.25
    assert sum(_shares(samples)) < 0.1


def test_the_released_code_acts_with_the_mean_minus_the_noise():
    """Flow matching learns u(eps, 0, 1) = E[a] - eps; without eps added, the action is that: noise around the mean."""
    samples, eps = _samples_of("om2p-released", _two_modes(), 800, "options.eta=0")
    assert (samples - (-eps).clamp(-1, 1)).abs().mean() < 0.3  # 0.6 away from what eps + u would give


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("om2p", ["options.eta=2"]),
        ("ma-fql", ["options.alpha=0.1"]),
        ("vgm2p", []),
        ("ma-sfbc", ["options.score_hidden=[64,64]", "options.solver_evaluations=15", "options.candidates=8"]),
    ],
)
def test_values_move_every_generative_policy_to_the_better_mode(name, settings):
    samples, _ = _samples_of(name, _two_modes(slope=1.0), 1000, *settings)
    assert _shares(samples)[1] > 0.9


def test_the_best_of_several_candidates_is_the_better_mode_without_guidance():
    samples, _ = _samples_of("om2p", _two_modes(slope=1.0), 1000, "options.eta=0", "options.candidates=8")
    assert _shares(samples)[1] > 0.9


def test_a_candidate_is_drawn_as_without_choice_and_taken_by_its_value():
    algorithm = make_algorithm("om2p", _two_modes(slope=1.0), [0, 1], "options.candidates=5")
    policy = algorithm.policy
    obs = torch.zeros(2, 50, 1)
    eps = SeedStreams([0, 1], SAMPLING).normal(1, 50, policy.noise_dim)
    with torch.no_grad():
        taken = policy.act(obs, eps)
        candidates = torch.stack([policy.flow.act(obs, one) for one in eps.split(1, -1)], 2)  # [K, B, 5, 1]
        values = torch.stack([policy.critic(obs, one).mean(1) for one in candidates.unbind(2)], 2)
    best = values.argmax(-1)[..., None, None]
    torch.testing.assert_close(taken, candidates.gather(2, best).squeeze(2))


def test_candidates_choose_among_discrete_actions_too(discrete_dataset):
    settings = ["options.eta=0", "options.candidates=4", "options.averaged=true"]
    algorithm = train("om2p", discrete_dataset, [0, 1], 3, *settings)
    agents = discrete_dataset.environment.spec.num_agents
    obs = torch.zeros(2 * agents, 6, algorithm.team.input_dim)
    eps = SeedStreams([0, 1], SAMPLING).normal(agents, 6, algorithm.policy.noise_dim)
    with torch.no_grad():
        actions = algorithm.policy.act(obs, eps)
    assert actions.shape[-1] == algorithm.team.act_dim
    assert ((actions == 1).sum(-1) == 1).all()
    assert actions.sum(-1).eq(1).all()


def test_averaged_networks_act_and_follow_those_that_learn():
    settings = ["options.averaged=true", "optimizer.rho=0.25"]
    algorithm, learner = make_learner("om2p", _two_modes(), [0], "options.candidates=2", *settings)
    before = algorithm.policy.flow.net.output_layer.weight.clone()
    learner.update()
    learned = algorithm.actor.net.output_layer.weight
    assert not torch.equal(learned, before)
    torch.testing.assert_close(algorithm.policy.flow.net.output_layer.weight, torch.lerp(before, learned, 0.25))
    assert algorithm.policy.critic is algorithm.critic_target
    alone, learner = make_learner("bc-flow", _two_modes(), [0], *settings)
    before = alone.policy.net.output_layer.weight.clone()
    learner.update()
    torch.testing.assert_close(
        alone.policy.net.output_layer.weight, torch.lerp(before, alone.actor.net.output_layer.weight, 0.25)
    )


def test_the_noise_of_acting_is_scaled_and_that_of_training_is_not():
    algorithm = make_algorithm("om2p", _two_modes(), [0], "options.noise_scale=0")
    eps = SeedStreams([0], SAMPLING).normal(1, 9, 1)
    obs = torch.zeros(1, 9, 1)
    with torch.no_grad():
        assert torch.equal(algorithm.policy.act(obs, eps), algorithm.policy.act(obs, 5 * eps))
        assert not torch.equal(algorithm.policy(obs, eps), algorithm.policy(obs, 5 * eps))


def test_vgm2ps_guidance_weight_sharpens_the_condition():
    """Rewards favour the right mode only on average: w carries samples there beyond what the condition alone does."""
    rng = np.random.default_rng(0)
    side = rng.choice([-1.0, 1.0], 20_000)
    actions = (0.3 * side + 0.25 * rng.standard_normal(20_000)).clip(-1, 1)[:, None]
    data = _one_state(actions, side)
    means = []
    for weight in (1.0, 3.0):
        samples, _ = _samples_of("vgm2p", data, 800, f"options.guidance={weight}")
        means.append(samples.mean().item())
    assert means[0] > 0.15
    assert means[1] > means[0] + 0.05


def test_the_choice_among_candidates_is_a_softmax():
    """Frequencies of the diffusion policy's choice equal softmax(Q), sharpness 1, of its own candidates."""
    rng = np.random.default_rng(0)
    data = _one_state(rng.uniform(-1, 1, (64, 1)), np.zeros(64))
    algorithm = make_algorithm("ma-sfbc", data, [0], "options.candidates=3", "options.sharpness=1")
    policy = algorithm.policy
    policy.trust.fill_(1.0)
    with torch.no_grad():
        start = SeedStreams([1], SAMPLING).normal(1, 1, 3).expand(-1, 20_000, -1)
        eps = torch.cat([start, SeedStreams([2], SAMPLING).normal(1, 20_000, 3)], -1)
        obs = torch.zeros(1, 20_000, 1)
        candidates = policy.samples(obs[:, :1], start[:, :1].unflatten(-1, (3, 1)))  # [1, 1, 3, 1]
        values = policy.critic.of_many(obs[:, :1], candidates).mean(1).flatten()
        chosen = policy(obs, eps).flatten()
    expected = torch.softmax(values, -1)
    assert 0.4 < expected.max() < 0.98, "too easy, or nothing to tell apart"
    for candidate, probability in zip(candidates.flatten(), expected, strict=True):
        share = ((chosen - candidate).abs() < 1e-4).float().mean().item()
        assert share == pytest.approx(probability.item(), abs=4 * math.sqrt(0.25 / 20_000))


def test_behaviour_candidates_are_taken_at_random_until_the_critic_has_learned():
    data = _one_state(np.zeros((64, 1)), np.zeros(64))
    algorithm = make_algorithm("ma-sfbc", data, [0])
    assert (algorithm.policy.trust == 0).all()
    for stage in algorithm.stages(10)[1:2]:
        stage.prepare(Transitions(data), SeedStreams([0], INITIALISATION))
    assert (algorithm.policy.trust == 1).all()
