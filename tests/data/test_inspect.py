"""What is found out about data sets: figures against hand-made data, coverage, and the page that shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from om2p_data import dataset
from om2p_data.envs import find
from om2p_data.envs.particle import observed_states
from om2p_data.errors import UserError
from om2p_data.inspect import statistics, tables, views
from om2p_data.inspect.statistics import Study, study
from om2p_data.inspect.views import Plane
from tests.data.looked_at import CN_ID, FOREIGN_ID, GAME_ID, HC_ID, Run, command, write_all


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    write_all(folder)
    return folder


@pytest.fixture
def run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command of om2p-data in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return command(root)


# Figures


def test_a_team_of_different_agents_in_figures(root: Path) -> None:
    found = study(GAME_ID, root).description
    assert (found.transitions, found.episodes, found.terminated) == (6, 2, 0.5)
    assert found.team_return["mean"] == pytest.approx((15.0 + 15.5) / 2)
    assert (found.episode_length["min"], found.episode_length["max"]) == (2, 4)
    assert (found.environment, found.tier, found.published) == ("game", "mixed", None)
    assert found.score(15.0) == 75.0
    walker, chooser = found.agents
    assert (walker.return_mean, walker.return_std, walker.present) == (10.5, 0.5, 1.0)
    assert (chooser.return_mean, chooser.return_std, chooser.present) == (20.0, 0.0, pytest.approx(4 / 6))
    first, second = walker.actions
    assert first.mean == pytest.approx(0.5)
    assert first.std == pytest.approx(np.std([2, 2, -2, 0, 1, 0]))
    assert (first.low, first.high, first.at_bound) == (-2.0, 2.0, 0.5)
    shares = np.array([2, 1, 2, 1]) / 6
    assert first.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(32))
    assert (second.mean, second.at_bound, second.entropy) == (0.5, 0.0, 0.0)
    assert walker.entropy == pytest.approx((first.entropy or 0.0) / 2)
    assert (walker.obs_low, walker.obs_high, walker.obs_dim, walker.obs_constant) == (-7.0, 7.0, 3, 1)
    # Of the chooser only the steps before it left count, which zeros would spoil.
    assert [choice.mean for choice in chooser.actions] == [0.25, 0.5, 0.25]
    assert [choice.at_bound for choice in chooser.actions] == [None] * 3
    assert chooser.entropy == pytest.approx(1.5 * np.log(2) / np.log(3))
    assert (chooser.obs_low, chooser.obs_high, chooser.obs_dim, chooser.obs_constant) == (1.0, 9.0, 2, 1)


def test_sources_in_figures(root: Path) -> None:
    late, early = study(GAME_ID, root).description.sources
    assert (late.name, late.episodes, late.transitions, late.share) == ("late", 1, 2, pytest.approx(1 / 3))
    assert (early.name, early.episodes, early.transitions, early.share) == ("early", 1, 4, pytest.approx(2 / 3))
    assert (late.return_mean, early.return_mean) == (15.5, 15.0)


def test_uniform_actions_and_the_published_level(root: Path) -> None:
    found = study(CN_ID, root).description
    assert (found.published, found.terminated) == (159.6, 0.0)
    assert all(0.9 < agent.entropy <= 1.0 for agent in found.agents)
    assert found.score(found.reference_expert or 0.0) == 100.0
    files = [path for path in (root / CN_ID).rglob("*") if path.is_file()]
    assert found.megabytes == pytest.approx(sum(path.stat().st_size for path in files) / 1e6)
    assert found.hdf5_megabytes < found.megabytes


def test_a_hash_is_verified_against_the_data(root: Path) -> None:
    one = study(CN_ID, root)
    assert statistics.verify(one) is True
    other = Study(study(HC_ID, root).data, one.views, one.description)
    assert statistics.verify(other) is False
    assert statistics.verify(study(FOREIGN_ID, root)) is None


# Coverage


def plane(points: np.ndarray) -> Plane:
    return Plane("p", "x", "y", np.zeros(2), np.ones(2), points.astype(np.float32))


def test_coverage_of_a_plane() -> None:
    centres = (np.arange(20) + 0.5) / 20
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    everywhere, half = plane(grid), plane(grid[grid[:, 0] < 0.5])
    assert (everywhere.visited, everywhere.evenness, everywhere.outside) == (1.0, pytest.approx(1.0), 0.0)
    assert (half.visited, half.evenness) == (0.5, pytest.approx(0.5))
    lopsided = plane(np.concatenate([grid, np.repeat(grid[:1], 2_000, axis=0)]))
    assert (lopsided.visited, lopsided.evenness < 0.1) == (1.0, True)
    beyond = plane(np.array([[0.5, 0.5], [1.5, 0.5], [0.5, -3.0], [2.0, 2.0]]))
    assert beyond.outside == 0.75
    assert beyond.visited == 1 / 400
    assert plane(np.full((3, 2), 9.0)).evenness == 0.0


def test_effective_dimension_counts_directions() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((20_000, 3)).astype(np.float32)
    apart = views.Views(noise * [1, 100, 0.01], (), "")
    assert apart.effective_dimension == pytest.approx(3, abs=0.01)
    copies = views.Views(np.repeat(noise[:, :1], 4, axis=1) * [1, -2, 3, 4] + 5, (), "")
    assert copies.effective_dimension == pytest.approx(1)
    with_constants = views.Views(np.concatenate([noise, np.ones_like(noise)], axis=1), (), "")
    assert with_constants.effective_dimension == pytest.approx(3, abs=0.01)
    assert views.Views(np.ones((4, 2), np.float32), (), "").effective_dimension == 0.0


def test_particle_planes_are_where_the_bodies_are(root: Path) -> None:
    one = study(CN_ID, root)
    states = observed_states(find("cn"), one.data.episodes.obs)
    assert [own.name for own in one.views.planes] == ["agent_0", "agent_1", "agent_2"]
    for index, own in enumerate(one.views.planes):
        np.testing.assert_array_equal(own.points, states[:, 2 * index : 2 * index + 2])
        np.testing.assert_array_equal([own.low, own.high], [[-1, -1], [1, 1]])


def test_joint_planes_and_forward_speed(root: Path) -> None:
    one = study(HC_ID, root)
    state = one.data.episodes.state
    assert state is not None
    names = [own.name for own in one.views.planes]
    assert names == ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    # HalfCheetah's state: height, pitch, six angles, then the velocities of x, height, pitch and the six joints.
    np.testing.assert_array_equal(one.views.planes[4].points, state[:, [6, 15]])
    np.testing.assert_array_equal(one.views.forward_speed, state[:, 8])


def test_other_states_lie_on_their_principal_plane(root: Path) -> None:
    one = study(FOREIGN_ID, root)
    (own,) = one.views.planes
    states = one.data.episodes.obs.reshape(18, 6)
    standard = (states - states.mean(0)) / states.std(0)
    spectrum = np.linalg.svd(standard.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(own.points, axis=0), spectrum[:2], rtol=1e-4)
    assert abs(float(own.points[:, 0] @ own.points[:, 1])) < 1e-3
    assert one.views.states.shape == (18, 6)
    assert study(GAME_ID, root).views.states.shape == (8, 5)  # without the padding


def test_large_sets_are_sampled_alike_every_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SAMPLE", 50)
    data = dataset.load(CN_ID, root)
    first, second = views.look(data), views.look(data)
    assert first.states.shape == (50, 18)
    np.testing.assert_array_equal(first.states, second.states)
    whole = observed_states(find("cn"), data.episodes.obs)
    rows = [int(np.flatnonzero((whole == state).all(1))[0]) for state in first.states]
    assert rows == sorted(set(rows))
    assert max(rows) > 400  # not the first ones


# Pages


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0"), (-0.0001, "0"), (0.1234, "0.123"), (-4.1, "-4.10"), (281.26, "281.3"), (98765.4, "98,765")],
)
def test_numbers_as_text(value: float | None, text: str) -> None:
    assert tables.number(value) == text


def test_a_table_as_text() -> None:
    table = tables.Table("Title", ("name", "empty", "value"), (("a", "", "1"), ("bcd", "", "100")), "one two three", 1)
    assert tables.text(table, 12).splitlines() == [
        "Title", "  name  value", "  a         1", "  bcd     100", "  (one two", "   three)",
    ]  # fmt: skip


def test_show(run: Run) -> None:
    page = run("show", CN_ID, GAME_ID, HC_ID, "--verify")
    assert re.search(rf"^  {CN_ID} +500 +20 +25\.0 +\d+\.\d ± \d+\.\d +159\.6 ", page, re.MULTILINE)
    assert page.count("(verified)") == 3
    assert re.search(r"^  chooser +0: 25\.0%  1: 50\.0%  2: 25\.0%$", page, re.MULTILINE)
    assert re.search(r"^  walker  0 +0\.50 ± 1\.38 +-2\.00 +2\.00 +50\.0% ", page, re.MULTILINE)
    assert re.search(r"^  early   ppo +10 +1  abababababab +4  66\.7% +1  15\.0 ± 0\.0 +75\.0$", page, re.MULTILINE)
    assert "50.0% by themselves, the others at a time limit" in page
    assert "taken from lab/game/first-v0 (2 episodes)" in " ".join(page.split())
    assert "om2p-data generate --env cooperative-navigation --tier random --transitions 500 --seed 5" in page
    present = re.search(r"^  chooser .* 66\.7%$", page, re.MULTILINE)
    assert present is not None


def test_show_other_peoples_data(run: Run) -> None:
    page = run("show", FOREIGN_ID, "--verify")
    assert "none stated" in page
    assert not re.search(r"^  score", page, re.MULTILINE)
    assert re.search(r"^  team return +5\.00 ± 0\.00 ", page, re.MULTILINE)


def test_show_as_json(run: Run, root: Path) -> None:
    (card,) = json.loads(run("show", GAME_ID, "--json"))
    assert card["id"] == GAME_ID
    assert card["verified"] is None
    assert card["agents"][1]["actions"][1]["mean"] == 0.5
    assert card["coverage"]["planes"][0]["visited"] == study(GAME_ID, root).views.planes[0].visited
    assert card["content_hash"] == dataset.load(GAME_ID, root).metadata["content_hash"]


def test_show_says_when_the_data_were_changed(run: Run, root: Path) -> None:
    column = root / GAME_ID / "flat" / "rewards.npy"
    before = column.read_bytes()
    try:
        column.write_bytes(before[:-4] + np.float32(77.0).tobytes())
        assert "WRONG: the data have another" in run("show", GAME_ID, "--verify", code=1)
    finally:
        column.write_bytes(before)


def test_unknown_ids_are_one_line(root: Path) -> None:
    with pytest.raises(UserError, match="did you mean"):
        study(CN_ID.replace("random", "randon"), root)
