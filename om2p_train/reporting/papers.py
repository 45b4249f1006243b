"""Runs of an experiment, laid out as the paper's table or figure beside its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from om2p_data.inspect.drawing import LIGHT, Draw, Theme, save_all, styled
from om2p_data.inspect.page import picture
from om2p_data.inspect.tables import Table
from om2p_data.recipe import parse_overrides
from om2p_data.storage import parse_id
from om2p_data.tiers import Tier
from om2p_train import reporting, statistics
from om2p_train.experiments import Experiment, Part, Show
from om2p_train.flows import Derivative
from om2p_train.recorded_run import Run
from om2p_train.reporting import figures, tables
from om2p_train.reporting.page import Section, piece
from om2p_train.results import Compared, Results, assemble, flat

Names = Mapping[tuple[Any, ...], str]  # of lists on an axis


@dataclass(frozen=True)
class Laid:
    """A part as table and figure; the figure's name is that of its file."""

    table: Table
    figures: Mapping[str, Draw]


def write(
    experiment: Experiment, scale: str, found: Sequence[tuple[Part, Results]], folder: Path
) -> tuple[str, list[Path]]:
    """Write an experiment's tables and figures, and the page with them and everything that a report has.

    Args:
        experiment: what was reproduced.
        scale: of the reproduction, by its name.
        found: the runs of each part.
        folder: where the files go.

    Returns:
        The main tables in Markdown, and the paths; no files where no run has finished.

    Raises:
        UserError: the folder cannot be written.
    """
    found = [(part, replace(results, protocol=scale)) for part, results in found]
    laid = [(part, lay(part, experiment, results)) for part, results in found if results.runs]
    whole = replace(_whole(results for _, results in found), protocol=scale)
    if not laid:
        return reporting.text(whole), []
    title = f"{experiment.title} ({experiment.source}), scale {scale}"
    drawn = {name: draw for _, one in laid for name, draw in one.figures.items()}
    sections = [
        Section(
            f"part-{part.name}",
            part.title[0].upper() + part.title[1:],
            (piece(one.table, *(picture(part.title, draw) for draw in one.figures.values())),),
        )
        for part, one in laid
    ]
    own = [one.table for _, one in laid]
    paths = reporting.write(whole, folder, title, own, sections)
    paths += save_all(drawn, folder, file_types=reporting.FIGURE_TYPES)
    text = "\n\n".join([title, *(tables.markdown(table) for table in own)])
    notes = "\n".join(f"- {note}" for note in whole.notes())
    return text + (f"\n\n{notes}" if notes else ""), paths


def _whole(found: Iterable[Results]) -> Results:
    """All runs of all parts, named as there if that tells them apart; a run that several parts show is one run."""
    runs: dict[Path, tuple[Run, str]] = {}
    said: dict[str, list[Any]] = {"gaps": [], "damaged": [], "remarks": []}
    for results in found:
        runs |= {run.folder: (run, label) for run, label in zip(results.runs, results.labels, strict=True)}
        for name, lines in said.items():
            lines += getattr(results, name)
    own, names = [run for run, _ in runs.values()], [label for _, label in runs.values()]
    apart = len({(run.dataset, label) for run, label in runs.values()}) == len(runs)
    apart &= len({(label, run.name, run.settings) for run, label in runs.values()}) == len(set(names))
    whole = assemble(own, {}, named=names if apart else None)
    return replace(whole, **{name: tuple(dict.fromkeys(said[name])) for name in said})


def lay(part: Part, experiment: Experiment, results: Results) -> Laid:
    """A part's runs, of which there is one at least, as its table and figures."""
    note = f"{experiment.source}: {part.claim}" if part.claim else ""
    if part.show is Show.TABLE:
        table = tables.grid(results, published(experiment, results), experiment.source)
        return Laid(_noted(table, _meaning(part) if part.named else ""), {})
    if part.show is Show.COST:
        return Laid(tables.costs(results, experiment.published_cost, experiment.source), {})
    if part.show is Show.AXIS:
        assert part.axis is not None  # checked when it was read
        names = _names(part, part.axis)
        table = _noted(_noted(along_table(results, part.axis, names), _meaning(part) if names else ""), note)
        return Laid(table, {part.name: partial(along, results, part.axis, part.title, names=names)})
    if part.show is Show.CHOICE:
        return Laid(_noted(choice_table(results), note), {part.name: partial(figures.returns, results)})
    compared = results.compared()
    if compared is None:  # an average over what happens to be there would compare nothing
        return Laid(_noted(tables.grid(results), note), {})
    table = _noted(averages_table(results, compared), note)
    return Laid(table, {part.name: partial(averages, results, compared, part.title)})


def _names(part: Part, axis: str) -> Names:
    """Of the lists that a part's variants have on its axis."""
    variants = {name: dict(flat(parse_overrides(own))) for name, own in part.variants.items()}
    alone = {name: own[axis] for name, own in variants.items() if list(own) == [axis]}
    return {tuple(value): name for name, value in alone.items() if isinstance(value, list)}


def _meaning(part: Part) -> str:
    """What the variants of a part are."""
    return "; ".join(f"{name}: {', '.join(own) or 'as the recipe is'}" for name, own in part.variants.items())


def published(experiment: Experiment, results: Results) -> tables.Published:
    """The experiment's numbers for the data sets of the results."""
    known = {dataset: parse_id(dataset) for dataset in results.datasets}
    return {
        dataset: experiment.published.get(parts.task, {}).get(Tier(parts.tier), {}) for dataset, parts in known.items()
    }


def settings_table(results: Results) -> Table | None:
    """Options that are not the same for all data sets of a method, data sets by method and option; None without any."""
    columns: dict[tuple[str, str], dict[str, Any]] = {}
    for method in results.methods:
        cells = {dataset: results.cell(dataset, method) for dataset in results.datasets}
        values = {dataset: run.recipe["options"] for dataset, run in cells.items() if run is not None}
        for key in dict.fromkeys(key for options in values.values() for key in options):
            found = {dataset: options.get(key) for dataset, options in values.items()}
            if len({str(value) for value in found.values()}) > 1:
                columns[method, key] = found
    if not columns:
        return None
    rows = [
        (tables.short(dataset), *("" if dataset not in found else str(found[dataset]) for found in columns.values()))
        for dataset in results.datasets
    ]
    header = ("data set", *(f"{method}: {key}" for method, key in columns))
    return Table("Options that differ between data sets", header, tuple(rows))


def choice_table(results: Results) -> Table:
    """Final returns, data sets by variants of one recipe; the highest mean of each data set is the choice."""
    rows = []
    for dataset in results.datasets:
        runs = {method: results.cell(dataset, method) for method in results.methods}
        final = {method: run.final for method, run in runs.items() if run is not None and run.played}
        whole = len(final) == len(runs) and all(gap.dataset != dataset for gap in results.gaps)
        best = max(final, key=lambda method: final[method].mean()) if whole else None
        cells = [tables.marked(final[name], best=name == best) if name in final else "" for name in results.methods]
        rows.append((tables.short(dataset), f"{results.of(dataset)[0].dataset_return:.1f}", *cells))
    header = ("data set", "data", *(method.partition(", ")[2] or "as it is" for method in results.methods))
    note = f"scale {results.scales}; mean ± std over seeds; bold: the highest, the choice, where every variant has run"
    return Table(f"Variants of {results.runs[0].name}", header, tuple(rows), note)


def along_table(results: Results, key: str, names: Names = MappingProxyType({})) -> Table:
    """Final returns by data set, method and one key of the recipe; a list has its name, if it has one."""
    rows = []
    for dataset in results.datasets:
        for name, runs in _by_recipe(results.of(dataset)).items():
            rows += [
                (tables.short(dataset), name, place, tables.spread(run.final))
                for place, run in [(_place(run, key, names), run) for run in runs]
            ]
    header = ("data set", "method", key.rpartition(".")[2], "final return")
    note = f"scale {results.scales}; mean ± std over seeds"
    return Table(f"Final returns along {key}", header, tuple(rows), note, text_columns=3)


def along(
    results: Results, key: str, title: str, theme: Theme = LIGHT, *, names: Names = MappingProxyType({})
) -> Figure:
    """Final return against a key of the recipe, one panel a data set: mean with 95% interval.

    Runs that differ in something else than the key's value (a derivative that has no step) are drawn as levels; lists
    stand at their names, if they have some.
    """
    with styled(theme):
        figure, panels = figures.split(len(results.datasets))
        colors = figures.colors_of(list(_by_recipe(results.runs)), theme)
        for dataset, axes in zip(results.datasets, panels, strict=True):
            for name, runs in _by_recipe(results.of(dataset)).items():
                placed = [run for run in runs if _level(run, key) is None]
                _line(axes, placed, key, names, colors[name], name)
                for run, style in zip(
                    [run for run in runs if _level(run, key)], itertools.cycle(("-.", (0, (1, 1)))), strict=False
                ):
                    label = f"{name}, {_level(run, key)}"
                    axes.axhline(run.final.mean(), color=colors[name], ls=style, lw=1.5, label=label)
            figures.references(axes, results, dataset, theme, axes.axhline)
            axes.set(title=tables.short(dataset), xlabel=key.rpartition(".")[2], ylabel="team return")
        figures.legend(figure, panels)
        figure.suptitle(f"{title}, scale {results.scales}", fontsize=11)
        return figure


def averages_table(results: Results, compared: Compared) -> Table:
    """Every method's average over the data sets: raw, and normalised with its interval."""
    methods, datasets = compared
    levels = [results.of(dataset)[0] for dataset in datasets]
    data = results.levels(datasets)
    means = (f"{run.dataset_return:.1f}" for run in levels)
    rows = [
        (
            "data set mean",
            f"{np.mean([run.dataset_return for run in levels]):.1f}",
            f"{np.mean(data):.1f}",
            "",
            "",
            "",
            *means,
        )
    ]
    for method in methods:
        scores = results.scores(method, datasets)
        runs = [run for dataset in datasets if (run := results.cell(dataset, method)) is not None]
        mean, iqm = statistics.mean(scores), statistics.iqm(scores)
        cells = (f"{np.mean([run.final.mean() for run in runs]):.1f}", *tables.bounds(mean), *tables.bounds(iqm))
        rows.append((method, *cells, *(tables.spread(run.final) for run in runs)))
    header = ("method", "average return", "normalised", "95% interval", "IQM", "IQM 95%")
    note = f"scale {results.scales}; averages over all runs on {len(datasets)} data sets; intervals by stratified "
    note += "bootstrap; the last columns are raw returns, mean ± std over seeds"
    left_out = [method for method in results.methods if method not in methods]
    note += f"; left out, since runs are missing: {', '.join(left_out)}" if left_out else ""
    columns = (*header, *map(tables.short, datasets))
    return Table("Averages over data sets", columns, tuple(rows), note)


def averages(results: Results, compared: Compared, title: str, theme: Theme = LIGHT) -> Figure:
    """Every method's average normalised score with its 95% interval, and its score on each data set as dots."""
    with styled(theme):
        methods, datasets = compared
        figure = Figure(figsize=(8, 1.4 + 0.5 * len(methods)), layout="constrained")
        axes = figure.add_subplot()
        signs = dict(zip(datasets, "os^DvP*X" * (1 + len(datasets) // 8), strict=False))
        for row, (method, color) in enumerate(figures.colors_of(methods, theme).items()):
            scores = results.scores(method, datasets)
            estimate = statistics.mean(scores)
            axes.barh(row, estimate.value, color=color, alpha=0.35, height=0.6)
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [row, row], color=color, lw=3)
            for dataset, own in zip(datasets, scores, strict=True):
                look = {"ms": 5, "color": theme.ink, "alpha": 0.7, "label": tables.short(dataset)}
                axes.plot(own.mean(), row, signs[dataset], **look)
        figures.rows(axes, methods)
        axes.set(xlabel="normalised score of the final policy", title=f"{title}, scale {results.scales}")
        figures.legend(figure, [axes])
        return figure


def _noted(table: Table, note: str) -> Table:
    return Table(table.title, table.header, table.rows, "; ".join(filter(None, [table.note, note])), table.text_columns)


def _line(axes: Axes, runs: Sequence[Run], key: str, names: Names, color: str, label: str) -> None:
    """One method along the axis; numbers of several sizes on a logarithmic axis, lists by their names."""
    if not runs:
        return
    values = [run.option(key) for run in runs]
    numeric = all(isinstance(value, (int, float)) for value in values)
    runs = sorted(runs, key=lambda run: run.option(key)) if numeric else runs
    places = [run.option(key) for run in runs] if numeric else [_place(run, key, names) for run in runs]
    means = [statistics.mean([run.final]) for run in runs]
    axes.plot(places, [mean.value for mean in means], "o-", color=color, lw=1.5, ms=4, label=label)
    for place, mean in zip(places, means, strict=True):
        if mean.low is not None and mean.high is not None:
            axes.plot([place, place], [mean.low, mean.high], color=color, lw=4, alpha=0.3, solid_capstyle="butt")
    if numeric and min(values) > 0 and max(values) / min(values) >= 20:
        axes.set_xscale("log")
    if not numeric:
        axes.tick_params(axis="x", rotation=30)


def _place(run: Run, key: str, names: Names) -> str:
    level = _level(run, key)
    value = run.option(key)
    if level is not None:
        return level
    if isinstance(value, list):
        return names.get(tuple(value)) or ", ".join(f"{number:g}" for number in value)
    return f"{value:g}"


def _level(run: Run, key: str) -> str | None:
    """How a run without a place on the axis is called: a finite difference has a step, other derivatives have none."""
    derivative = run.option("options.derivative")
    if key != "options.finite_difference_step" or derivative == Derivative.FINITE_DIFFERENCE.value:
        return None
    return f"{derivative} derivative"


def _by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.name, []).append(run)
    return found
