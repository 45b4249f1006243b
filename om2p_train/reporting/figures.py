"""Figures of results: learning curves, scores with intervals, performance profiles, probability of improvement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from om2p_data.inspect.drawing import LIGHT, Draw, Theme, cycle, styled
from om2p_train import statistics
from om2p_train.reporting.tables import short
from om2p_train.results import Compared, Results
from om2p_train.statistics import Estimate

_MOST_COLUMNS = 4  # of panels
_THRESHOLDS = 101
_LETTERS_PER_INCH = 12  # of a legend
_LEGEND_LINES, _LEGEND_LINE = 4, 0.2  # that a figure has room for, and inches of each further one
_LINES = ("-", "--", "-.", ":")  # a second sign beside the colour, once that is used up


def plan(results: Results) -> dict[str, Draw]:
    """All figures that these results allow, by file name (without ending)."""
    drawn: dict[str, Draw] = {}
    if any(run.played for run in results.runs):
        drawn["curves"] = partial(curves, results)
        drawn["returns"] = partial(returns, results)
    compared = results.compared()
    if compared is not None:
        drawn["scores"] = partial(scores, results, compared)
        drawn["profiles"] = partial(profiles, results, compared)
        drawn["improvement"] = partial(improvement, results, compared)
    return drawn


def curves(results: Results, theme: Theme = LIGHT) -> Figure:
    """Return against updates, one panel a data set: a line a method (mean), shaded from its worst to its best seed."""
    with styled(theme):
        datasets = [data for data in results.datasets if any(run.played for run in results.of(data))]
        figure, panels = split(len(datasets))
        colors = _colors(results.methods, theme)
        for dataset, axes in zip(datasets, panels, strict=True):
            for method in results.methods:
                run = results.cell(dataset, method)
                if run is None or not run.played:
                    continue
                color, style = colors[method]
                axes.plot(
                    run.updates, run.returns.mean(1), style, color=color, marker="o", ms=2.5, lw=1.5, label=method
                )
                axes.fill_between(run.updates, run.returns.min(1), run.returns.max(1), color=color, alpha=0.15, lw=0)
            references(axes, results, dataset, theme, axes.axhline)
            axes.set(title=short(dataset), xlabel="updates", ylabel="team return")
            axes.set_xlim(left=0)
        legend(figure, panels)
        return figure


def returns(results: Results, theme: Theme = LIGHT) -> Figure:
    """Final returns, one panel a data set: every seed as a dot, the mean with its interval as a bar."""
    with styled(theme):
        datasets = [data for data in results.datasets if any(run.played for run in results.of(data))]
        figure, panels = split(len(datasets), height=1.0 + 0.28 * len(results.methods), same_rows=True)
        names = max(map(len, results.methods)) / _LETTERS_PER_INCH  # beside the panels, not out of their width
        figure.set_figwidth(figure.get_figwidth() + names)
        colors = _colors(results.methods, theme)
        for dataset, axes in zip(datasets, panels, strict=True):
            for row, method in enumerate(results.methods):
                run = results.cell(dataset, method)
                if run is None or not run.played:
                    continue
                color, _ = colors[method]
                axes.plot(run.final, np.full(len(run.final), row), "o", color=color, ms=4, alpha=0.5, mew=0)
                bar(axes, statistics.mean([run.final]), row, color)
            references(axes, results, dataset, theme, axes.axvline)
            rows(axes, results.methods)
            axes.set(title=short(dataset), xlabel="team return of the final policy")
        legend(figure, panels)
        return figure


def scores(results: Results, compared: Compared, theme: Theme = LIGHT) -> Figure:
    """Interquartile mean and mean of the normalised scores over all common data sets, with intervals."""
    with styled(theme):
        figure = Figure(figsize=(8, 1.2 + 0.35 * len(compared.methods)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        colors = _colors(results.methods, theme)
        for axes, name, statistic in zip(
            panels, ("interquartile mean", "mean"), (statistics.iqm, statistics.mean), strict=True
        ):
            for row, method in enumerate(compared.methods):
                bar(axes, statistic(results.scores(method, compared.datasets)), row, colors[method][0])
            rows(axes, compared.methods)
            axes.set_xlabel(f"normalised score, {name}")
        return figure


def profiles(results: Results, compared: Compared, theme: Theme = LIGHT) -> Figure:
    """Share of runs above each normalised score, with pointwise intervals."""
    with styled(theme):
        by_method = {method: results.scores(method, compared.datasets) for method in compared.methods}
        every = np.concatenate([score for found in by_method.values() for score in found])
        margin = 0.03 * (every.max() - every.min() or 1.0)
        thresholds = np.linspace(every.min() - margin, every.max() + margin, _THRESHOLDS)
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        colors = _colors(results.methods, theme)
        for method in compared.methods:
            color, style = colors[method]
            profile = statistics.performance_profile(by_method[method], thresholds)
            axes.plot(thresholds, profile.shares, style, color=color, lw=1.8, label=method)
            if profile.low is not None and profile.high is not None:
                axes.fill_between(thresholds, profile.low, profile.high, color=color, alpha=0.12, lw=0)
        axes.set(xlabel="normalised score", ylabel="share of runs that score more", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(figure, [axes])
        return figure


def improvement(results: Results, compared: Compared, theme: Theme = LIGHT) -> Figure:
    """How likely the method of a row beats that of a column; bold where the interval excludes a draw."""
    with styled(theme):
        methods = compared.methods
        side = 1.6 + 0.85 * len(methods)
        figure = Figure(figsize=(max(4.0, side), max(2.6, 0.75 * side)), layout="constrained")
        axes = figure.add_subplot()
        found = np.full((len(methods), len(methods)), np.nan)
        for row, first in enumerate(methods):
            for column, second in enumerate(methods):
                if row == column:
                    continue
                pair = results.scores(first, compared.datasets), results.scores(second, compared.datasets)
                estimate = statistics.probability_of_improvement(*pair)
                found[row, column] = estimate.value
                decided = estimate.low is not None and not estimate.low <= 0.5 <= (estimate.high or 0)
                strong = abs(estimate.value - 0.5) > 0.25
                axes.text(
                    column,
                    row,
                    f"{100 * estimate.value:.0f}",
                    ha="center",
                    va="center",
                    fontweight="bold" if decided else "normal",
                    color="#23272e" if not strong else "#ffffff",
                )
        axes.imshow(found, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(False)
        axes.set_title("P(row > column), %; bold: the interval excludes 50", fontsize=10)
        return figure


def colors_of(methods: Sequence[str], theme: Theme) -> dict[str, str]:
    """The colour of each method, the same in all figures."""
    return {method: color for method, (color, _) in _colors(methods, theme).items()}


def _colors(methods: Sequence[str], theme: Theme) -> dict[str, tuple[str, str]]:
    """Colour and line style by method."""
    styles = [_LINES[index // len(theme.series) % len(_LINES)] for index in range(len(methods))]
    return dict(zip(methods, zip(cycle(theme, len(methods)), styles, strict=True), strict=True))


def split(count: int, height: float = 2.7, *, same_rows: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, whose rows may be named once for all panels of a line."""
    columns = count if count <= _MOST_COLUMNS else min(_MOST_COLUMNS, math.ceil(math.sqrt(count)))
    lines = math.ceil(count / columns)
    width = 7.0 if count == 1 else 3.4 * columns
    figure = Figure(figsize=(width, (4.2 if count == 1 else height * lines) + 0.5), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=same_rows).flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def references(axes: Axes, results: Results, dataset: str, theme: Theme, line: Callable[..., object]) -> None:
    """Draw what every return stands beside: the data's mean and that of uniform actions. `line`: axhline or axvline."""
    first = results.of(dataset)[0]
    line(first.dataset_return, color=theme.ink, ls="--", lw=1, label="data set mean")
    if first.random_return is not None:
        line(first.random_return, color=theme.ink, ls=":", lw=1, alpha=0.6, label="random actions")


def bar(axes: Axes, estimate: Estimate, row: int, color: str) -> None:
    """An estimate with its interval in a row."""
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row, row], color=color, lw=5, alpha=0.35, solid_capstyle="butt")
    axes.plot([estimate.value], [row], "|", color=color, ms=14, mew=2)


def rows(axes: Axes, methods: Sequence[str]) -> None:
    """Name the rows, the first on top."""
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels; what several of them show is named once."""
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    longest = max(map(len, named), default=0)
    columns = max(1, min(len(named), int(figure.get_figwidth() * _LETTERS_PER_INCH / (longest + 6))))
    lines = math.ceil(len(named) / columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * max(0, lines - _LEGEND_LINES))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)
