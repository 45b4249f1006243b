"""What holds for every algorithm and recipe: learners apart, seeds that equal their lone runs."""

from __future__ import annotations

import pytest
import torch

from om2p_data.errors import UserError
from om2p_train.algorithms import ALGORITHMS

from .learners import DISCRETE, RECIPES, load, make_algorithm, make_learner, one_batch, rows_of

CASES = [(name, "random_dataset") for name in RECIPES] + [(name, "discrete_dataset") for name in DISCRETE]


@pytest.fixture
def case(request):
    name, dataset = request.param
    return name, request.getfixturevalue(dataset)


every_case = pytest.mark.parametrize("case", CASES, indirect=True, ids=[f"{a}-{b.split('_')[0]}" for a, b in CASES])


@every_case
def test_one_learner_never_touches_another(case):
    name, dataset = case
    algorithm, batch, noise = one_batch(name, dataset, [0, 1])  # K = 4
    losses = {
        part: getattr(algorithm, f"{part}_loss")(batch, noise)
        for part in ("actor", "critic")
        if getattr(algorithm, part) is not None
    }
    assert losses
    for part, loss in losses.items():
        assert loss.shape == (4,)
        for k in range(4):
            algorithm.zero_grad()
            loss[k].backward(retain_graph=True)
            sizes = sum(rows_of(p, 4) for p in getattr(algorithm, part).parameters() if p.grad is not None)
            assert sizes[k] > 0
            # VGM2P's values are the team's: its agents share one loss, and seeds share none.
            same_team = [k] if name != "vgm2p" or part == "actor" else [k // 2 * 2, k // 2 * 2 + 1]
            assert sizes.sum() == sizes[same_team].sum()


@every_case
def test_a_stacked_team_equals_its_seeds_run_one_by_one(case):
    name, dataset = case
    stacked, learner = make_learner(name, dataset, [0, 3, 1], updates=18)
    for _ in range(18):
        learner.update()
    for index, seed in enumerate([0, 3, 1]):
        alone, single = make_learner(name, dataset, [seed], updates=18)
        for _ in range(18):
            single.update()
        for key, value in alone.named_parameters():
            rows = len(value)
            block = stacked.get_parameter(key)[index * rows : (index + 1) * rows]
            torch.testing.assert_close(block, value, rtol=1e-3, atol=1e-4)


@every_case
def test_the_same_seed_gives_the_same_numbers(case):
    name, dataset = case
    runs = []
    for _ in range(2):
        algorithm, learner = make_learner(name, dataset, [5], updates=6)
        losses = [learner.update() for _ in range(6)]
        runs.append([*algorithm.parameters(), *(value for loss in losses for value in loss.values())])
    for first, second in zip(*runs, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@every_case
def test_a_restored_learner_goes_on_bit_for_bit(case):
    name, dataset = case
    for pause in (2, 5, 8):  # in every stage of those that have some
        whole, learner = make_learner(name, dataset, [0, 1], updates=9)
        for _ in range(9):
            learner.update()
        _, first = make_learner(name, dataset, [0, 1], updates=9)
        for _ in range(pause):
            first.update()
        resumed, second = make_learner(name, dataset, [0, 1], updates=9)
        second.restore(first.state())
        for _ in range(9 - pause):
            second.update()
        for key, value in whole.named_parameters():
            torch.testing.assert_close(resumed.get_parameter(key), value, rtol=0, atol=0)


@every_case
def test_an_agent_acts_on_its_own_observation_and_noise_alone(case):
    name, dataset = case
    policy = one_batch(name, dataset, [0])[0].policy
    obs, eps = torch.randn(2, 7, 5), torch.randn(2, 7, policy.noise_dim)
    together = policy.act(obs, eps)
    for agent in range(2):
        changed, redrawn = obs.clone(), eps.clone()
        changed[1 - agent], redrawn[1 - agent] = torch.randn(7, 5), torch.randn(7, policy.noise_dim)
        torch.testing.assert_close(policy.act(changed, redrawn)[agent], together[agent])


@every_case
def test_actions_are_what_worlds_take(case):
    name, dataset = case
    policy = one_batch(name, dataset, [0])[0].policy
    actions = policy.act(10 * torch.randn(2, 50, 5), torch.randn(2, 50, policy.noise_dim))
    assert actions.shape == (2, 50, dataset.environment.spec.act_dim)
    if dataset.environment.spec.discrete[0]:
        assert (actions.sum(-1) == 1).all()
        assert set(actions.unique().tolist()) == {0.0, 1.0}
    else:
        assert actions.abs().max() <= 1


def test_standardised_observations_reach_the_same_networks(random_dataset):
    algorithm, learner = make_learner("om2p", random_dataset, [0, 1], "data.normalize_obs=true")
    data = learner._data
    algorithm.policy.standardize(data.obs_mean, data.obs_scale)
    raw = torch.from_numpy(random_dataset.episodes.obs[:9]).transpose(0, 1).repeat(2, 1, 1)
    seen = data.obs[:9].transpose(0, 1).repeat(2, 1, 1)
    eps = torch.randn(4, 9, 2)
    torch.testing.assert_close(algorithm.policy.act(raw, eps), algorithm.policy(seen, eps))
    torch.testing.assert_close(data.obs.mean(0), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.obs.std(0), torch.ones(2, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["om2p", "om2p-released", "ma-cql", "omar", "ma-fql"])
def test_the_actors_step_adds_nothing_to_the_critics_gradient(name, random_dataset):
    """After an update the critic still holds the gradient of its own loss, on the same weights, batch and noise."""
    updated, learner = make_learner(name, random_dataset, [0])
    learner.update()
    twin, batch, noise = one_batch(name, random_dataset, [0])
    twin.critic_loss(batch, noise).sum().backward()
    for key, parameter in updated.critic.named_parameters():
        assert parameter.requires_grad
        torch.testing.assert_close(parameter.grad, twin.critic.get_parameter(key).grad)


def test_agents_and_seeds_start_from_different_weights(random_dataset):
    for name in ALGORITHMS:
        algorithm = make_algorithm(name, random_dataset, [0, 1])
        for module in algorithm.policy.modules():
            if hasattr(module, "output_layer"):
                first = module.output_layer.weight.flatten(1)
                assert len(torch.unique(first, dim=0)) == len(first)


@pytest.mark.parametrize("name", ["om2p", "ma-cql", "omar", "ma-fql", "vgm2p"])
def test_targets_follow_by_polyak_averaging(name, random_dataset):
    algorithm, learner = make_learner(name, random_dataset, [0], "optimizer.rho=0.25")
    before = [p.detach().clone() for target, _ in algorithm.targets for p in target.parameters()]
    learner.update()
    sources = [p for _, source in algorithm.targets for p in source.parameters()]
    targets = [p for target, _ in algorithm.targets for p in target.parameters()]
    assert targets
    for old, source, target in zip(before, sources, targets, strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * source.detach())


def test_gradients_are_bounded_learner_by_learner(random_dataset):
    """With a bound far below every gradient, all learners' gradients have that norm, however large they were."""
    algorithm, learner = make_learner("om2p", random_dataset, [0, 1], "optimizer.max_gradient=1e-6")
    learner.update()
    for part in ("actor", "critic"):
        gradients = [p.grad.reshape(4, -1) for p in getattr(algorithm, part).parameters()]
        norms = sum(gradient.square().sum(1) for gradient in gradients).sqrt()
        torch.testing.assert_close(norms, torch.full((4,), 1e-6), rtol=1e-3, atol=0)


def test_the_critic_has_a_step_size_of_its_own(random_dataset):
    _, learner = make_learner("om2p", random_dataset, [0], "optimizer.critic_learning_rate=0.5")
    assert learner._optimizers["critic"].param_groups[0]["lr"] == 0.5
    assert learner._optimizers["actor"].param_groups[0]["lr"] == load("om2p").optimizer.learning_rate


@pytest.mark.parametrize("name", ["om2p", "om2p-paper", "omar", "ma-fql"])
def test_what_needs_gradients_by_actions_refuses_choices(name, discrete_dataset):
    with pytest.raises(UserError, match=r"needs continuous actions, and these are discrete; .*ma-cql") as caught:
        make_algorithm(name, discrete_dataset, [0])
    assert "\n" not in str(caught.value)


def test_stages_add_up_to_the_run(random_dataset):
    for name in ALGORITHMS:
        for updates in (7, 8, 1000):
            stages = make_algorithm(name, random_dataset, [0]).stages(updates)
            assert sum(stage.updates for stage in stages) == updates
            assert all(stage.updates > 0 for stage in stages)


@pytest.mark.parametrize(("updates", "share"), [(2, 0.5), (6, 0.999), (100, 0.001)])
def test_a_stage_without_updates_is_refused(updates, share, random_dataset):
    algorithm = make_algorithm("ma-sfbc", random_dataset, [0], f"options.behavior_share={share}")
    with pytest.raises(UserError, match=rf"behavior_share = {share} of run\.updates = {updates} leaves none"):
        algorithm.stages(updates)


def test_a_learner_stops_when_its_run_is_over(random_dataset):
    _, learner = make_learner("bc", random_dataset, [0], updates=1)
    learner.update()
    with pytest.raises(ValueError, match="all 1 updates are taken"):
        learner.update()


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_has_a_recipe_of_its_name(name):
    assert load(name).algorithm == name
