"""Data sets as pictures: what the plots draw, which states a film shows, and what a report holds."""

from __future__ import annotations

import base64
import io
import itertools
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from PIL import Image

from om2p_data import dataset
from om2p_data.envs import find, make
from om2p_data.envs.particle import observed_states
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.inspect import drawing, figures, film, pictures, report, statistics
from om2p_data.inspect.statistics import Study, study
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


# Plots


def histograms(axes: Axes) -> list[tuple[float, float, float]]:
    """Sum, first and last edge of a panel's histograms; each is drawn as an area and as a line."""
    lines = [patch for patch in axes.patches if isinstance(patch, StepPatch) and not patch.get_fill()]
    drawn = [patch.get_data() for patch in lines]
    return [(float(shares.sum()), edges[0], edges[-1]) for shares, edges, _ in drawn]


def test_histograms_hold_every_episode_and_published_means(root: Path) -> None:
    one = study(CN_ID, root)
    figure = figures.returns([one, one])
    extremes = one.description.team_return["min"], one.description.team_return["max"]
    assert histograms(figure.axes[0]) == [pytest.approx((1.0, *extremes))] * 2
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [159.6, 159.6]  # pyright: ignore[reportIndexIssue]


def test_actions_are_drawn_by_component_and_choice(root: Path) -> None:
    figure = figures.actions(study(GAME_ID, root))
    first, second, choices = figure.axes
    assert histograms(first) == histograms(second) == [(pytest.approx(1.0), -2.0, 2.0)]
    assert [bar.get_height() for bar in choices.patches] == [0.25, 0.5, 0.25]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(figures.actions(study(HC_ID, root)).axes) == 6


def test_actions_of_an_agent_that_left_are_not_drawn(root: Path) -> None:
    one = study(CN_ID, root)
    arrays = {name: array.copy() for name, array in one.data.episodes.select([0]).arrays().items()}
    arrays["actions"][:5, 0], arrays["terminated"][4, 0], arrays["truncated"][24, 0] = 0.9, True, False
    for name, begin in (("actions", 5), ("rewards", 5), ("obs", 6)):
        arrays[name][begin:, 0] = 0
    data = replace(one.data, episodes=Episodes.from_arrays(arrays))
    left = Study(data, one.views, statistics.describe(data, one.views, root / CN_ID))
    panel = figures.actions(left).axes[0]
    drawn = [patch.get_data() for patch in panel.patches if isinstance(patch, StepPatch)]
    assert [shares[int(np.searchsorted(edges, 0.9)) - 1] for shares, edges, _ in drawn] == [1.0, 1.0]


def test_many_components_share_a_panel_an_agent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_MOST_PANELS", 2)
    walker, chooser = figures.actions(study(GAME_ID, root)).axes
    (image,) = walker.collections
    shares = image.get_array()
    assert shares is not None
    assert shares.shape == (2, 48)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (shares[0, -1], shares[1].max()) == (pytest.approx(1 / 3), 1.0)
    assert len(chooser.patches) == 3


def test_many_sources_are_drawn_by_mean_and_deviation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_MOST_SOURCES", 1)
    (axes,) = figures.sources(study(GAME_ID, root)).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 15.5], [1, 15.0]])


def test_sources_share_the_episodes(root: Path) -> None:
    drawn = histograms(figures.sources(study(GAME_ID, root)).axes[0])
    assert [share for share, *_ in drawn] == [0.5, 0.5]


def test_bodies_have_a_panel_a_joint_and_one_of_speed(root: Path) -> None:
    panels = figures.coverage(study(HC_ID, root)).axes
    assert [axes.get_title().splitlines()[0] for axes in panels[:-1]] == [
        "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot",
    ]  # fmt: skip
    assert panels[-1].get_xlabel() == "forward speed (m/s)"


def test_every_set_and_environment_has_its_figures(root: Path) -> None:
    names = list(figures.plan([study(dataset_id, root) for dataset_id in (CN_ID, GAME_ID)]))
    assert names == [
        "cooperative-navigation-returns",
        "cooperative-navigation-order",
        "game-returns",
        "game-order",
        "om2p-cooperative-navigation-random-v0-coverage",
        "om2p-cooperative-navigation-random-v0-actions",
        "lab-game-mixed-v3-sources",
        "lab-game-mixed-v3-coverage",
        "lab-game-mixed-v3-actions",
    ]


def test_plot_writes_pictures(run: Run, tmp_path: Path) -> None:
    printed = run("plot", FOREIGN_ID, "--out", "plots", "--dark")
    names = ["lab-twins-hand-v1-actions", "lab-twins-hand-v1-coverage", "twins-order", "twins-returns"]
    assert sorted(Path(line).stem for line in printed.splitlines()) == names
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [f"{name}.png" for name in names]
    for path in (tmp_path / "plots").iterdir():
        image = np.asarray(Image.open(path).convert("RGB"))
        assert image[2, 2].max() < 64  # dark paper
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def test_plot_into_a_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"^cannot write to .*taken: "):
        drawing.save_all(figures.plan_card(study(GAME_ID, root)), tmp_path / "taken")


# Films


def test_episodes_are_chosen_by_number_and_rank(root: Path) -> None:
    data = dataset.load(CN_ID, root)
    returns = data.episodes.team_returns
    best, third, median, worst = (choice.index for choice in film.choose("best, 3,median,worst", data))
    assert (returns[best], third, returns[worst]) == (returns.max(), 3, returns.min())
    assert returns[median] == np.sort(returns)[9]
    for wrong in ("20", "-1", "bset", ""):
        with pytest.raises(UserError, match=r"unknown episode .*best, worst, median, numbers from 0 to 19"):
            film.choose(wrong, data)


def test_films_show_the_recorded_states(root: Path) -> None:
    data = dataset.load(CN_ID, root)
    frames = film.draw(data, film.choose("2,0", data), every=10)
    assert len(frames) == 6
    env = make("cn")
    begin = int(data.episodes.episode_start[2])
    states = observed_states(find("cn"), data.episodes.obs[begin : begin + 26])
    first = int(data.episodes.transition_start[2])
    for frame, picture, step in zip(frames[:3], env.film(states, 10), (0, 10, 20), strict=True):
        np.testing.assert_array_equal(frame[-picture.shape[0] :], picture)
        earned = data.episodes.team_rewards[first : first + step].sum(dtype=np.float64)
        caption = film._captioned(picture, f"episode 2, step {step} of 25, return {earned:.1f}")
        np.testing.assert_array_equal(frame, caption)
    strips = [frame[:-408] for frame in frames]
    assert all((one != other).any() for one, other in itertools.pairwise(strips))


def test_films_are_short_unless_asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "MOST_PICTURES", 9)
    data = dataset.load(CN_ID, root)
    assert len(film.draw(data, film.choose("0", data))) == 9  # steps 0, 3, ..., 24


def test_only_our_worlds_are_drawn(root: Path) -> None:
    data = dataset.load(GAME_ID, root)
    with pytest.raises(UserError, match=rf"^{GAME_ID} cannot be drawn: .*cooperative-navigation.* game is none"):
        film.draw(data, film.choose("0", data))


def test_render(run: Run, tmp_path: Path) -> None:
    printed = run("render", CN_ID, "--episodes", "best,1", "--every", 5, "--out", "a/b.gif", "--fps", 20)
    assert re.fullmatch(r"wrote a/b\.gif: 12 pictures, returns: best \d+\.\d, 1 \d+\.\d\n", printed)
    with Image.open(tmp_path / "a" / "b.gif") as image:
        assert getattr(image, "n_frames", 0) == 12
        assert image.info["duration"] == 50
    run("render", CN_ID, "--episodes", "0", "--out", "c.mp4")
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(tmp_path / "c.mp4"))
    assert next(reader)["size"] == (384, 432)
    assert len(list(reader)) == 26


def test_films_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [np.zeros((8, 8, 3), np.uint8)]
    with pytest.raises(UserError, match=r"unknown picture format '\.avi'.*valid: \.gif, \.mp4$"):
        pictures.writer_of(tmp_path / "a.avi")
    (tmp_path / "taken").touch()
    for name in ("a.gif", "a.mp4"):
        path = tmp_path / "taken" / name
        with pytest.raises(UserError, match=rf"^cannot write .*taken/{name}: "):
            pictures.writer_of(path)(frames, path, 10)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"MP4 needs ffmpeg, which pip install imageio-ffmpeg brings"):
        pictures.writer_of(tmp_path / "a.mp4")


# Reports


class Page(HTMLParser):
    """Text and addresses of a page, and whether its elements are closed in order."""

    _VOID = frozenset({"meta", "img", "source", "link", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "b")
        self.addresses += [value or "" for key, value in attrs if key in ("src", "srcset", "href")]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_is_one_page_with_everything(run: Run, tmp_path: Path) -> None:
    run("report", GAME_ID, "--out", "deep/page.html", "--verify")
    text = (tmp_path / "deep" / "page.html").read_text()
    page = Page(text)
    assert "url(" not in text
    images = [value for value in page.addresses if value.startswith("data:image/png;base64,")]
    assert page.addresses == images
    assert len(images) == 2 * 5  # returns, order, sources, coverage, actions, for light and dark screens
    assert len(set(images)) == 10
    papers = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))).convert("L"))[2, 2]
        for value in images
    ]
    assert papers[::2] == [papers[0]] * 5  # dark first: the source that is taken where it fits
    assert papers[0] < 64 < 240 < papers[1]
    assert "a <b>bold</b> game" in page.text
    for words in (
        GAME_ID,
        "(verified)",
        "Behaviour policies",
        "abababababab",
        "minari.load_dataset('lab/game/mixed-v3')",
    ):
        assert words in page.text
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_a_report_compares_several(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dot = io.BytesIO()
    Image.new("RGB", (4, 4)).save(dot, "png")
    monkeypatch.setattr("om2p_data.inspect.page.image", lambda draw, theme: dot.getvalue())  # real ones take seconds
    run("report", CN_ID, FOREIGN_ID)
    page = Page((tmp_path / "report.html").read_text())
    links = [value for value in page.addresses if value.startswith("#")]
    assert links == ["#set-1", "#set-2"]
    assert page.ids == ["set-1", "set-2"]
    assert len(page.addresses) - 2 == 2 * (4 + 2 * 2)  # two environments compared, then two figures a set
    assert "2 data sets beside each other" in page.text
    assert "om2p-data generate --env cooperative-navigation" in page.text
    assert '"transitions_requested": 500' in page.text


def test_a_report_that_cannot_be_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "render", lambda found, verified: "")
    with pytest.raises(UserError, match=r"^cannot write .*: Is a directory$"):
        report.write([study(GAME_ID, root)], tmp_path, [None])
