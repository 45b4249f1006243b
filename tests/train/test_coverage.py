"""How far policies keep to the data: against closed forms, and with policies of which the answer is known."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import KDTree

from om2p_data import dataset as datasets
from om2p_data.dataset import Dataset
from om2p_data.envs import find
from om2p_data.errors import UserError
from om2p_data.generation import generate
from om2p_data.inspect.drawing import LIGHT
from om2p_data.tiers import Tier, load_recipe
from om2p_train import coverage, surroundings
from om2p_train.actors import DeterministicActor, NoiseActor
from om2p_train.covered import Measured, Method, Report
from om2p_train.networks import NetworkConfig
from om2p_train.policy import TeamPolicy
from om2p_train.reporting import coverage as reporting
from om2p_train.streams import INITIALISATION, SeedStreams
from om2p_train.surroundings import SAMPLES, Samples, Surroundings, Teams
from om2p_train.team import Team

from .conftest import toy_dataset

NETWORK = NetworkConfig.model_validate({"hidden": (8,), "activation": "relu", "critic_layer_norm": False})


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def assert_mean(values: np.ndarray, expected: float) -> None:
    """Within four standard errors."""
    assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / math.sqrt(values.size)


# Neighbours


def test_neighbours_are_the_nearest_of_standardised_observations(monkeypatch):
    obs = np.random.default_rng(1).normal(size=(500, 5)).astype(np.float32) * [1, 100, 0.01, 1, 1] + [0, 0, 0, 7, 0]
    obs[:, 3] = 7.0  # tells nothing, and has no deviation to divide by
    obs = obs.astype(np.float32)
    anchors = np.array([0, 3, 250, 499])
    monkeypatch.setattr(coverage, "_BLOCK_ROWS", 64)
    found = coverage.neighbours(obs, anchors, 12)
    standard = np.delete(obs, 3, 1) / np.delete(obs, 3, 1).std(0)
    expected = KDTree(standard).query(standard[anchors], 13)[1][:, 1:]  # the first is the anchor
    np.testing.assert_array_equal(found, expected)


def test_equal_observations_are_neighbours_but_no_anchor_is_its_own():
    obs = np.zeros((6, 2), np.float32)
    found = coverage.neighbours(obs, np.arange(6), 5)
    assert [set(row) for row in found] == [set(range(6)) - {index} for index in range(6)]


# Energy distance


def test_of_two_points_it_is_twice_how_far_they_are_apart():
    first, second = np.zeros((1, 4, 2)), np.broadcast_to([3.0, 4.0], (1, 4, 2))
    np.testing.assert_allclose(coverage.energy_distance(first, second), [10.0])


def test_it_is_scipys_up_to_the_pairs_that_are_left_out(rng):
    x, y = rng.normal(size=(2, 9))
    own = coverage.energy_distance(x[:, None], y[:, None])
    every = 9**2 * stats.energy_distance(x, y) ** 2  # the sum over all pairs, those of one observation among them
    assert own * 9 * 8 == pytest.approx(every - 2.0 * np.abs(x - y).sum())


def test_of_shifted_normals_it_is_the_closed_form(rng):
    shift = 1.5
    x, y = rng.normal(size=(2, 600, 20, 1))
    # |N(m, 2)| has the mean 2 / sqrt(pi) exp(-m^2 / 4) + m (1 - 2 Phi(-m / sqrt(2))).
    between = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * (1 - 2 * stats.norm.cdf(-shift / 2**0.5))
    assert_mean(coverage.energy_distance(x, y + shift), 2 * between - 4 / math.sqrt(math.pi))


def test_where_policy_and_data_agree_it_is_0_on_average_however_observations_differ(rng):
    means = 5.0 * np.arange(4)[:, None]  # of the action at each of four observations
    x, y = means + 0.1 * rng.normal(size=(2, 5000, 4, 1))
    found = coverage.energy_distance(x, y)
    assert_mean(found, 0.0)
    assert found.std() / math.sqrt(len(found)) < 0.002  # so that a bias of a hundredth would be seen


def test_of_choices_it_is_the_distance_of_frequencies(monkeypatch, rng):
    monkeypatch.setattr(coverage, "_BLOCK_SETS", 7)
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    x, y = (np.eye(3)[rng.choice(3, size=(2000, 8), p=share)] for share in (p, q))
    assert_mean(coverage.energy_distance(x, y), math.sqrt(2) * ((p - q) ** 2).sum())


# Spread and modes


def test_variance_is_summed_over_components_without_bias(rng):
    assert_mean(coverage.variance(rng.normal(size=(4000, 3, 2)) * [0.5, 2.0]), 4.25)
    assert (coverage.variance(np.ones((2, 5, 3))) == 0).all()


def test_the_radius_holds_as_much_of_the_noise_in_any_dimension(rng):
    assert coverage.noise_radius(0.1, 1) == pytest.approx(0.3)
    # In the plane the share beyond r deviations is exp(-r^2 / 2).
    assert coverage.noise_radius(1.0, 2) == pytest.approx(math.sqrt(-2 * math.log(2 * stats.norm.sf(3))))
    lengths = np.linalg.norm(rng.normal(size=(100_000, 4)), axis=1)
    assert (lengths > coverage.noise_radius(1.0, 4)).mean() == pytest.approx(0.0027, abs=0.0007)


def test_teams_are_apart_where_every_pair_is_beyond_two_radii():
    teams = np.array([[[0.0], [0.0], [0.0]], [[1.0], [0.5], [1.0]], [[2.0], [2.0], [1.3]]])
    assert coverage.apart(teams, np.full(3, 0.3)).tolist() == [True, False, False]
    assert coverage.apart(teams[:1], np.full(3, 0.3)).all()


def test_modes_are_kept_with_half_of_their_share():
    data = np.array([[0.5, 0.8, 0.95], [0.5, 0.2, 0.05]])  # two teams at three observations
    assert coverage.present(data).sum(0).tolist() == [2, 2, 1]
    shares = np.array([[0.25, 1.0, 0.4], [0.2, 0.1, 1.0]])
    assert coverage.modes_kept(shares, data).tolist() == [1, 2, 0]


# Policies at observations of data


@pytest.fixture
def two_modes(rng) -> Dataset:
    """One agent that goes to (0.6, 0.6) or (-0.6, -0.6), whatever it sees."""
    side = rng.choice([-0.6, 0.6], size=(400, 2, 1, 1))
    return toy_dataset(
        rng.normal(size=(400, 3, 1, 3)), side.repeat(2, -1), np.zeros((400, 2, 1)), terminal=False, length=2
    )


def with_teams(around: Surroundings) -> Surroundings:
    """The two modes as teams, of which each took half of the data."""
    place = np.array([0.6, -0.6])
    count = around.obs.shape[1]
    here = np.broadcast_to(place[:, None, None, None], (2, 1, count, 2))
    every, half = np.ones((1, count), bool), np.full((2, 1, count), 0.5)
    teams = Teams(
        ("one", "two"), (), 0.1, np.zeros((1, count, 1)), here, np.array([[0.3]]), half > 0, half, every, every
    )
    return dataclasses.replace(around, teams=teams)


def policy(dataset: Dataset, kind: type[DeterministicActor] | type[NoiseActor], scale: float = 1.0) -> TeamPolicy:
    card = dataset.environment
    actor = kind(SeedStreams([0], INITIALISATION), Team.of(card.spec), NETWORK)
    for weight in actor.parameters():
        weight.data *= scale
    return TeamPolicy(actor, card, {})


def test_a_policy_at_the_mean_of_two_modes_has_neither_and_no_spread(two_modes):
    around = with_teams(surroundings.draw(two_modes, 200, 8, 0))
    found = surroundings.measure(around, surroundings.of_policy(around, policy(two_modes, DeterministicActor, 0.0)))
    size = 0.6 * math.sqrt(2)
    # 2 E|X - 0| - E|X - X'|, where half of the pairs are 2 |X| apart.
    assert found.distance == pytest.approx(2 * size - size, abs=5 * found.error)
    assert found.spread == found.spread_nearby == 0
    assert found.modes == surroundings.Modes((0.0, 0.0), 1.0, 0.0)


def test_a_policy_that_draws_one_of_two_modes_has_both(two_modes, rng):
    around = with_teams(surroundings.draw(two_modes, 200, 8, 0))
    shapes = around.actions.shape[:3], (*around.obs.shape[:2], SAMPLES)
    drawn = Samples(*(rng.choice([-0.6, 0.6], (*shape, 1)).repeat(2, -1) for shape in shapes))
    found = surroundings.measure(around, drawn)
    assert abs(found.distance) < 4 * found.error
    assert found.error < 0.03
    assert found.spread == pytest.approx(0.6 * math.sqrt(2), rel=0.02)
    assert found.modes is not None
    assert found.modes.shares == pytest.approx((0.5, 0.5), abs=0.03)
    assert found.modes.kept > 1.99
    one_side = Samples(*(np.full((*shape, 2), 0.6) for shape in shapes))
    assert surroundings.measure(around, one_side).modes == surroundings.Modes((1.0, 0.0), 0.0, 1.0)


@pytest.mark.parametrize("kind", ["random_dataset", "discrete_dataset"])
def test_uniform_actions_are_at_no_distance_from_uniform_data(kind, request):
    around = surroundings.draw(request.getfixturevalue(kind), 240, 6, 0)
    found = surroundings.measure(around, surroundings.uniform(around))
    assert abs(found.distance) < 4 * found.error
    assert found.spread == pytest.approx(found.spread_nearby, rel=0.05)
    # The deviation of U(-1, 1) in two components, and of one of three choices that are one-hot.
    assert found.spread == pytest.approx(math.sqrt(2 / 3), rel=0.02)
    assert found.modes is None
    data = surroundings.of_data(around, None)
    assert abs(data.distance) < 4 * data.error
    assert (data.spread, data.modes) == (None, None)


def test_a_policy_is_asked_at_the_observations_of_its_own_agent(random_dataset):
    around = surroundings.draw(random_dataset, 30, 4, 0)
    learned = policy(random_dataset, DeterministicActor)
    found = surroundings.of_policy(around, learned)
    asked = {agent: around.obs_nearby[index].reshape(-1, 5) for index, agent in enumerate(learned.agents)}
    for index, actions in enumerate(learned.act(asked).values()):
        np.testing.assert_allclose(found.nearby[index].reshape(-1, 2), actions, atol=1e-6)
    here = learned.act({agent: around.obs[index] for index, agent in enumerate(learned.agents)})
    for index, actions in enumerate(here.values()):
        np.testing.assert_allclose(found.here[index], actions[:, None].repeat(SAMPLES, 1), atol=1e-6)
    # The actions of the data are those that were taken at these observations.
    episodes = random_dataset.episodes
    rows = {row.tobytes(): index for index, row in enumerate(episodes.obs[episodes.obs_index, 1])}
    for anchor, near in itertools.product(range(30), range(4)):
        index = rows[around.obs_nearby[1, anchor, near].tobytes()]
        np.testing.assert_array_equal(around.actions[1, anchor, near], episodes.actions[index, 1])


def test_the_seed_decides_everything(random_dataset, monkeypatch):
    learned = policy(random_dataset, NoiseActor)

    def measured(seed: int) -> surroundings.Coverage:
        around = surroundings.draw(random_dataset, 30, 4, seed)
        return surroundings.measure(around, surroundings.of_policy(around, learned))

    assert measured(0) == measured(0) != measured(1)
    assert measured(0).spread > 0.01  # every sample has noise of its own
    steps: list[int] = []
    monkeypatch.setattr(surroundings, "_BATCH", 100)
    around = surroundings.draw(random_dataset, 30, 4, 0)
    surroundings.of_policy(around, learned, steps.append)
    assert sum(steps) == around.joint_actions == 30 * (4 + SAMPLES)
    assert max(steps) == 100


def test_too_few_transitions(random_dataset):
    with pytest.raises(UserError, match="om2p/toy/random-v0 has 240 transitions: too few for 2 x 120 neighbours"):
        surroundings.draw(random_dataset, 10, 120, 0)


# Teams that ship with the package


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[Tier, Dataset]:
    """Data of the bundled teams of Cooperative Navigation, half of the mixed ones of each."""
    root, cn = tmp_path_factory.mktemp("datasets"), find("cn")
    shares = {Tier.RANDOM: None, Tier.MEDIUM: None, Tier.MEDIUM_EXPERT: 0.5}
    return {
        tier: datasets.load(
            generate(
                cn, tier, load_recipe(cn, None), transitions=6000, expert_share=share, root=root, progress=False
            ).dataset_id,
            root,
        )
        for tier, share in shares.items()
    }


def test_the_behaviour_itself_is_at_the_floor(made):
    around = surroundings.draw(made[Tier.MEDIUM], 300, 8, 0)
    again = surroundings.of_teams(around)
    assert again is not None
    found, data = surroundings.measure(around, again), surroundings.of_data(around, again)
    for one in (found, data):
        assert abs(one.distance) < 4 * one.error
        assert one.error < 0.003
        assert one.modes is not None
        assert one.modes.shares[0] > 0.99
        assert one.modes.kept > 0.99
        # The noise has a deviation of 0.1 in each of two components, less where it is clipped.
        assert one.spread == pytest.approx(0.1 * math.sqrt(2), rel=0.05)
    zero = policy(made[Tier.MEDIUM], DeterministicActor, 0.0)
    off = surroundings.measure(around, surroundings.of_policy(around, zero))
    assert off.distance > 20 * off.error
    assert around.teams is not None
    assert off.modes is not None
    # This team hovers often: within the noise of standing still.
    still = (around.teams.here[0] ** 2).sum(-1) <= coverage.noise_radius(0.1, 2) ** 2
    assert off.modes.shares[0] == off.modes.kept == pytest.approx(still.mean())


def test_a_mixture_of_two_teams_has_two_modes(made):
    around = surroundings.draw(made[Tier.MEDIUM_EXPERT], 300, 8, 0)
    teams, again = around.teams, surroundings.of_teams(around)
    assert teams is not None
    assert again is not None
    assert teams.names == ("medium", "expert")
    assert teams.telling.sum() > 50
    assert 0.5 < teams.apart.mean() < 1
    # Nearly every action of the data lies near what its own team means to do, and is no other's.
    assert teams.own.sum(0).mean() > 0.99
    assert teams.shares.sum(0).mean() > 0.99
    found, data = surroundings.measure(around, again).modes, surroundings.of_data(around, again).modes
    assert found is not None
    assert data is not None
    assert found.elsewhere < 0.02
    assert data.kept == 2
    assert found.kept > 1.85
    assert found.shares == pytest.approx(data.shares, abs=0.15)
    one_team = Samples(again.nearby, teams.here[0][:, :, None].repeat(SAMPLES, 2))
    assert surroundings.measure(around, one_team).modes == surroundings.Modes((1.0, 0.0), 0.0, 1.0)


def test_teams_are_known_by_their_weights(made):
    assert surroundings.draw(made[Tier.RANDOM], 20, 4, 0).teams is None
    data = made[Tier.MEDIUM]
    for other in ({"hash": "another"}, {"name": "replay"}):
        policies = tuple(dataclasses.replace(one, **other) for one in data.policies)
        around = surroundings.draw(dataclasses.replace(data, policies=policies), 20, 4, 0)
        assert around.teams is None
        assert surroundings.of_teams(around) is None


# What is shown


def report_of(dataset: Dataset) -> Report:
    """Two seeds of a method that stands still."""
    around = surroundings.draw(dataset, 60, 6, 0)
    again, samples = (
        surroundings.of_teams(around),
        surroundings.of_policy(around, policy(dataset, DeterministicActor, 0.0)),
    )
    learned = surroundings.measure(around, samples)
    return Report(
        around=around,
        data=surroundings.of_data(around, again),
        uniform=surroundings.measure(around, surroundings.uniform(around)),
        teams=None if again is None else surroundings.measure(around, again),
        methods=(
            Measured(Method("still", dataset.id, "", (), (3, 4), ("abcdef", "")), (learned, learned), samples.here),
        ),
    )


def test_tables_show_every_source_and_its_modes(made):
    mixed, uniform = report_of(made[Tier.MEDIUM_EXPERT]), report_of(made[Tier.RANDOM])
    found = reporting.modes(mixed)
    assert reporting.modes(uniform) is None
    assert found is not None
    assert found.header == ("policy", "near medium", "near expert", "elsewhere", "modes")
    names = ["uniform actions", "data", "behaviour teams again", "still"]
    assert [row[0] for row in found.rows] == names
    assert found.rows[1][4] == "2.000"
    still = mixed.methods[0].by_seed[0].modes
    assert still is not None
    assert found.rows[3][1] == f"{100 * still.shares[0]:.1f}% ± 0.0%"
    teams = mixed.around.teams
    assert teams is not None
    assert found.note.startswith(f"at {teams.telling.sum()} pairs of an agent and an observation, where")
    rows = list(csv.DictReader(io.StringIO(reporting.comma_separated([mixed, uniform]))))
    own = [row for row in rows if row["policy"] == "still"]
    assert [(row["seed"], row["commit"]) for row in own] == [("3", "abcdef"), ("4", "")] * 2
    assert float(own[0]["near_expert"]) == still.shares[1]
    assert float(own[0]["distance"]) == mixed.methods[0].by_seed[0].distance
    assert (own[2]["near_expert"], own[2]["modes"]) == ("", "")


def test_figures_show_where_two_teams_are_present(made):
    mixed, uniform = report_of(made[Tier.MEDIUM_EXPERT]), report_of(made[Tier.RANDOM])
    drawn = reporting.plan([mixed, uniform])
    name = "actions-cooperative-navigation"
    assert list(drawn) == ["distance", f"{name}-medium-expert", f"{name}-random"]
    figure = drawn[f"{name}-medium-expert"](LIGHT)
    teams, place = mixed.around.teams, mixed.around.dataset.environment.spec.agents
    assert teams is not None
    most = np.where(teams.telling, teams.shares.min(0), 0).max(0)
    assert len(figure.axes) == 4  # observations, of one method
    for axes, anchor in zip(figure.axes, np.argsort(-most, kind="stable"), strict=False):
        agent = place.index(axes.get_ylabel())
        assert teams.telling[agent, anchor]
        data, _, *marks = (np.array(line.get_xydata()) for line in axes.lines)
        np.testing.assert_array_equal(data, mixed.around.actions[agent, anchor])
        np.testing.assert_array_equal(np.concatenate(marks), teams.here[:, agent, anchor])
    panels = drawn["distance"](LIGHT).axes
    assert [axes.get_title() for axes in panels] == [
        f"cooperative-navigation {tier}" for tier in ("medium-expert", "random")
    ]
    np.testing.assert_array_equal(panels[0].lines[0].get_xdata(), [one.distance for one in mixed.methods[0].by_seed])
