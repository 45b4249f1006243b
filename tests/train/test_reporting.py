"""Tables, figures and the page, against numbers that are put into run folders by hand."""

from __future__ import annotations

import csv
import io
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from om2p_data.errors import UserError
from om2p_data.inspect.drawing import DARK, LIGHT, image
from om2p_train import experiments, reporting, results, statistics
from om2p_train.experiments import Show
from om2p_train.reporting import comparison, figures, papers, tables

from .written_runs import write_run

CN = "om2p/cooperative-navigation"


@pytest.fixture
def two(tmp_path):
    """Two methods on two data sets; om2p is far better on one, and nobody can tell on the other."""
    write_run(tmp_path / "a", "bc", ((100, 100, 100), (250, 260, 270)))
    write_run(tmp_path / "b", "om2p", ((500, 100, 100), (340, 350, 360)))
    write_run(tmp_path / "c", "bc", ((480, 500, 520),), tier="expert")
    write_run(tmp_path / "d", "om2p", ((490, 510, 530),), tier="expert")
    return results.gather([tmp_path])


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_one_data_set_is_a_table_of_policies(tmp_path):
    write_run(tmp_path / "a", "bc", ((250, 260, 270),))
    text = reporting.text(results.gather([tmp_path]))
    header, _, random, data, bc = rows_of(text)
    assert header == ["policy", "return", "normalised", "seeds"]
    assert random == ["random actions", "160.5", "0.2", ""]
    assert data == ["data set mean", "273.0", "31.7", ""]
    assert bc == ["bc", "260.0 ± 10.0", "28.1 ± 2.8", "3"]


def test_the_grid_marks_what_the_runs_do_not_tell_from_the_best(two):
    rows = rows_of(tables.markdown(tables.grid(two)))
    assert rows[0] == ["data set", "data", "bc", "om2p"]
    assert rows[2] == ["cooperative-navigation medium", "273.0", "260.0 ± 10.0", "**350.0 ± 10.0**"]
    assert rows[3][2:] == ["**500.0 ± 20.0**", "**510.0 ± 20.0**"]


def test_published_numbers_stand_beside_ours(two):
    published = {f"{CN}/medium-v0": {"om2p": (441.2, 21.3)}, f"{CN}/expert-v0": {"om2p": (614.0,), "omar": (1, 2)}}
    rows = rows_of(tables.markdown(tables.grid(two, published, "a paper")))
    assert rows[0] == ["data set", "data", "bc", "om2p", "om2p*"]  # nothing is said of methods that nobody ran
    assert [row[-1] for row in rows[2:]] == ["441.2 ± 21.3", "614.0"]
    assert "columns marked * are the numbers of a paper" in tables.grid(two, published, "a paper").note


def test_every_run_has_final_and_best_apart(two):
    rows = rows_of(tables.markdown(tables.details(two)))
    names = rows[0]
    om2p = next(dict(zip(names, row, strict=True)) for row in rows if row[1] == "om2p" and "medium" in row[0])
    assert om2p["final"] == "350.0 ± 10.0"
    assert om2p["best"] == "403.3 ± 83.9"  # 500, 350, 360
    assert om2p["IQM 95%"] == "340.0 to 360.0"
    assert om2p["updates"] == "200"
    assert "flatters" in tables.details(two).note


def test_aggregates_and_improvement(two):
    rows = rows_of(tables.markdown(comparison.aggregates(two)))
    span = 516.8 - 159.8
    expected = 100 * (np.array([340, 350, 360, 490, 510, 530]) - 159.8) / span
    assert rows[3][:2] == ["om2p", "6"]
    assert rows[3][4] == f"{expected.mean():.1f}"
    assert rows[3][2] == f"{np.sort(expected)[1:-1].mean():.1f}"
    found = {(row[0], row[1]): row[2] for row in rows_of(tables.markdown(comparison.improvement(two)))[2:]}
    assert found["om2p", "bc"] == "83%"  # 9 of 9 pairs, and 6 of 9
    assert found["bc", "om2p"] == "17%"


def test_groups_say_where_a_lead_comes_from(two, tmp_path):
    assert comparison.groups(two) is None  # a single data set in each
    write_run(tmp_path / "e", "bc", ((30, 40, 50),), task="world")
    write_run(tmp_path / "f", "om2p", ((18, 20, 22),), task="world")
    every = results.gather([tmp_path])
    rows = rows_of(tables.markdown(comparison.groups(every)))
    assert rows[0] == ["method", "medium", "expert", "cooperative-navigation", "world"]
    iqm = statistics.iqm(every.scores("om2p", ["om2p/cooperative-navigation/expert-v0"]))
    assert rows[3][2] == f"**{iqm.value:.1f} ({iqm.low:.1f} to {iqm.high:.1f})**"
    medium = statistics.iqm(
        every.scores("bc", [f"om2p/{task}/medium-v0" for task in ("cooperative-navigation", "world")])
    )
    assert rows[2][1].startswith(f"{medium.value:.1f} (")
    assert [row[4].startswith("**") for row in rows[2:]] == [True, False]
    assert "#### By tier" not in reporting.text(every)


def test_the_csv_has_every_seed_with_full_digits(two):
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(two))))
    assert len(rows) == 12
    one = next(row for row in rows if (row["method"], row["seed"]) == ("om2p", "0") and "medium" in row["dataset"])
    assert float(one["final_return"]) == 340
    assert float(one["best_return"]) == 500
    assert float(one["final_normalised"]) == pytest.approx(100 * (340 - 159.8) / 357)


def test_latex_is_escaped_and_balanced(two):
    text = tables.latex(tables.grid(two))
    assert text.count("{") == text.count("}")
    assert r"\textbf{350.0 $\pm$ 10.0}" in text
    assert "±" not in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {3}


def test_figures_show_what_the_tables_say(two):
    drawn = figures.plan(two)
    assert list(drawn) == ["curves", "returns", "scores", "profiles", "improvement"]
    lines = figures.curves(two).axes[0].get_lines()
    om2p = next(line for line in lines if line.get_label() == "om2p")
    np.testing.assert_allclose(om2p.get_xydata(), [[100, 700 / 3], [200, 350]])
    panel = figures.returns(two).axes[1]
    dots = [line.get_xdata() for line in panel.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate(dots), [480, 500, 520, 490, 510, 530])
    texts = [text.get_text() for text in figures.improvement(two, two.compared()).axes[0].texts]
    assert texts == ["17", "83"]
    profile = figures.profiles(two, two.compared()).axes[0].get_lines()[0].get_ydata()
    assert (profile[0], profile[-1]) == (1, 0)
    for theme in (LIGHT, DARK):
        with Image.open(io.BytesIO(image(drawn["scores"], theme))) as picture:
            assert picture.getpixel((2, 2))[:3] == tuple(bytes.fromhex(theme.paper[1:]))


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[name] for name in ("src", "href", "srcset") if values.get(name)]
        self.ids += [values["id"]] if "id" in values else []

    def handle_data(self, data):
        self.text += data


def test_everything_is_written_and_the_page_needs_nothing_else(two, tmp_path):
    paths = reporting.write(two, tmp_path / "out", "My results")
    names = {path.name for path in paths}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    drawn = {f"{name}.{kind}" for name in figures.plan(two) for kind in ("png", "pdf")}
    assert names == drawn | {"table.md", "table.tex", "results.csv", "runs.jsonl", "report.html"}
    page = _Page((tmp_path / "out" / "report.html").read_text())
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} == set(page.ids)
    assert "**" not in page.text
    for words in ("My results", "350.0 ± 10.0 •", "matd3, seed 7", "abcdef", "a machine", "hash of coop"):
        assert words in page.text
    assert "missing" not in page.text


def test_gaps_stand_on_the_page_and_in_the_tables(tmp_path):
    write_run(tmp_path / "a", "bc")
    write_run(tmp_path / "b", "om2p", tier="expert")
    found = results.gather([tmp_path])
    reporting.write(found, tmp_path / "out")
    for name in ("report.html", "table.md"):
        assert f"missing on {CN}/medium-v0: om2p (no run)" in (tmp_path / "out" / name).read_text()


def test_a_folder_that_cannot_be_written_is_one_line(two, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write to .*file: "):
        reporting.write(two, tmp_path / "file")


def part_of(name, show):
    return next(part for part in experiments.read(name).part if part.show is show)


def test_an_axis_shows_returns_along_a_key(tmp_path):
    for index, eta in enumerate((1000.0, 1.0, 10.0)):
        setting = f"options.eta={eta}"
        write_run(tmp_path / setting, "om2p", ((100 + index, 200 + index),), task="world", settings=[setting])
    found = results.gather([tmp_path])
    figure = papers.along(found, "options.eta", "eta")
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "om2p")
    np.testing.assert_allclose(line.get_xydata(), [[1, 151], [10, 152], [1000, 150]])
    assert figure.axes[0].get_xscale() == "log"
    part = part_of("figure3", Show.AXIS)
    text, paths = papers.write(experiments.read("figure3"), "cpu", [(part, found)], tmp_path / "out")
    assert {"eta.png", "eta.pdf", "report.html"} <= {path.name for path in paths}
    assert re.search(r"\| om2p +\| 1000 +\| 150\.0 ± 70\.7 \|", text)
    assert "scale cpu" in text
    assert "OM2P paper, Figure 3: the paper finds" in text


def test_a_derivative_without_a_step_is_a_level(tmp_path):
    step = ["options.derivative=finite-difference", "options.finite_difference_step=1e-2"]
    write_run(tmp_path / "step", "om2p-paper-gradient", ((10, 20),), settings=step)
    write_run(tmp_path / "zero", "om2p-paper-gradient", ((50, 70),), settings=["options.derivative=zero"])
    write_run(tmp_path / "exact", "om2p-paper-gradient", ((30, 40),))
    found = results.gather([tmp_path])
    axes = papers.along(found, "options.finite_difference_step", "step").axes[0]
    levels = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines() if "derivative" in line.get_label()}
    assert levels == {"om2p-paper-gradient, exact derivative": 35, "om2p-paper-gradient, zero derivative": 60}
    rows = rows_of(tables.markdown(papers.along_table(found, "options.finite_difference_step")))
    assert sorted(row[2] for row in rows[2:]) == ["0.01", "exact derivative", "zero derivative"]


def test_lists_on_an_axis_are_names(tmp_path):
    for xi in ("[0.0, 0.0, 0.0, 0.0]", "[2.0, 0.0, 0.0, 0.0]"):
        write_run(tmp_path / xi, "om2p-paper", settings=[f"options.xi={xi}"])
    found = results.gather([tmp_path])
    axes = papers.along(found, "options.xi", "times").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0, 0, 0, 0", "2, 0, 0, 0"]
    figure2 = experiments.read("figure2")
    laid = papers.lay(part_of("figure2", Show.AXIS), figure2, found)
    axes = laid.figures["times"](LIGHT).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["uniform", "late"]
    assert [row[2] for row in laid.table.rows] == ["uniform", "late"]
    assert "late: options.xi=[2.0, 0.0, 0.0, 0.0]" in laid.table.note


def test_averages_are_over_all_runs_and_data_sets(two):
    rows = rows_of(tables.markdown(papers.averages_table(two, two.compared())))
    assert rows[2][:2] == ["data set mean", "273.0"]
    assert rows[4][:2] == ["om2p", "430.0"]
    expected = 100 * (430 - 159.8) / (516.8 - 159.8)
    assert rows[4][2] == f"{expected:.1f}"
    bars = papers.averages(two, two.compared(), "title").axes[0].patches
    assert bars[1].get_width() == pytest.approx(expected)


def test_costs_stand_beside_the_papers(tmp_path):
    write_run(tmp_path / "a", "ma-fql")
    write_run(tmp_path / "b", "om2p")
    experiment = experiments.read("table2")
    part = part_of("table2", Show.COST)
    text, paths = papers.write(experiment, "cpu", [(part, results.gather([tmp_path]))], tmp_path / "out")
    rows = rows_of(text)
    names = rows[0]
    fql = next(dict(zip(names, row, strict=True)) for row in rows if row[1] == "ma-fql")
    assert fql["total s"] == "63.5"
    assert (fql["total s, OM2P paper, Table 2*"], fql["MB, OM2P paper, Table 2*"]) == ("715.0", "906.0")
    om2p = next(dict(zip(names, row, strict=True)) for row in rows if row[1] == "om2p")
    assert om2p["MB, OM2P paper, Table 2*"] == ""  # the paper's are the preset om2p-paper's
    assert "table.tex" in {path.name for path in paths}
    assert "Columns marked * are OM2P paper, Table 2's figures, from its own machine" in text.replace("; c", "; C")


def test_ablations_without_a_common_data_set_are_a_table_and_no_average(tmp_path):
    """Cells of a night that was broken off: nobody has all data sets, and no data set has everybody."""
    write_run(tmp_path / "a", "om2p-paper-only-bc", task="world")
    write_run(tmp_path / "b", "om2p-paper-only-q", task="world", tier="expert")
    found = results.gather([tmp_path])
    part = part_of("figure4", Show.BARS)
    text, paths = papers.write(experiments.read("figure4"), "cpu", [(part, found)], tmp_path / "out")
    assert "world expert" in text
    assert "ablations.png" not in {path.name for path in paths}
    assert "missing on om2p/world/expert-v0: om2p-paper-only-bc (no run)" in text


def test_a_paper_page_has_its_table_once_and_without_markdown(two, tmp_path):
    part = part_of("table1", Show.TABLE)
    papers.write(experiments.read("table1"), "strict", [(part, two)], tmp_path / "out")
    page = _Page((tmp_path / "out" / "report.html").read_text())
    assert page.text.count("350.0 ± 10.0 •") == 1
    assert "**" not in page.text
    assert "Scale strict; raw team returns" in page.text
    assert "scale paper" not in page.text


def test_long_names_fit_into_the_figures(tmp_path):
    """Constrained layout warns where axes collapse."""
    for index in range(6):
        settings = [f"options.xi=[{index}.0, 0.0, 0.0, 0.0]", "optimizer.batch_size=64", f"run.log_every={index + 10}"]
        for tier in ("medium", "medium-expert", "expert", "medium-replay"):
            write_run(tmp_path / f"{index}-{tier}", "om2p-paper", tier=tier, settings=settings)
    found = results.gather([tmp_path])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in figures.plan(found).values():
            image(draw)
