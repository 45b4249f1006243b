"""How methods compare over data sets: aggregates, by tier and task, pair by pair, and against the data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import permutations

import numpy as np

from om2p_data.inspect.tables import Table
from om2p_data.storage import parse_id
from om2p_train import statistics
from om2p_train.reporting import tables
from om2p_train.results import Results
from om2p_train.statistics import Estimate


def aggregates(results: Results) -> Table | None:
    """Normalised scores over all data sets that every method has; None if there are no two methods or no such data."""
    compared = results.compared()
    if compared is None:
        return None
    rows = []
    for method in compared.methods:
        scores = results.scores(method, compared.datasets)
        mean, iqm = statistics.mean(scores), statistics.iqm(scores)
        rows.append((method, str(sum(map(len, scores))), *tables.bounds(iqm), *tables.bounds(mean)))
    left_out = [method for method in results.methods if method not in compared.methods]
    names = ", ".join(map(tables.short, compared.datasets))
    note = (
        "interquartile mean and mean of the normalised final scores (0: uniform actions, 100: expert reference) of all "
        f"runs on {len(compared.datasets)} data sets ({names}), with 95% intervals by stratified bootstrap over seeds, "
        "the data sets being as they are"
        + (f"; left out, since runs are missing: {', '.join(left_out)}" if left_out else "")
    )
    return Table("Over all data sets", ("method", "runs", "IQM", "IQM 95%", "mean", "mean 95%"), tuple(rows), note)


def groups(results: Results) -> Table | None:
    """The interquartile mean of every tier's data sets and of every task's; None where that adds nothing."""
    compared = results.compared()
    if compared is None:
        return None
    by_group: dict[str, list[str]] = defaultdict(list)
    for part in ("tier", "task"):
        names = [getattr(parse_id(dataset), part) for dataset in compared.datasets]
        if len(set(names)) > 1:
            for name, dataset in zip(names, compared.datasets, strict=True):
                by_group[name].append(dataset)
    if not any(len(datasets) > 1 for datasets in by_group.values()):
        return None
    columns = []
    for datasets in by_group.values():
        found = {method: statistics.iqm(results.scores(method, datasets)) for method in compared.methods}
        best = max(found, key=lambda method: found[method].value)
        cells = {method: " ".join(filter(None, (f"{one.value:.1f}", _within(one)))) for method, one in found.items()}
        columns.append({method: tables.mark(cell, best=method == best) for method, cell in cells.items()})
    rows = tuple((method, *(column[method] for column in columns)) for method in compared.methods)
    note = (
        "interquartile mean of the normalised final scores on the data sets of a tier, and of a task, with its "
        "interval as above: where a lead comes from; bold: the highest of its column"
    )
    return Table("By tier and by task", ("method", *by_group), rows, note)


def improvement(results: Results) -> Table | None:
    """How likely one method's run beats another's; None as for `aggregates`."""
    compared = results.compared()
    if compared is None:
        return None
    rows = [
        (first, second, *_share(statistics.probability_of_improvement(*pair)))
        for first, second in permutations(compared.methods, 2)
        if (pair := (results.scores(first, compared.datasets), results.scores(second, compared.datasets)))
    ]
    note = (
        "probability that a run of X scores more than one of Y on the same data set, averaged over data sets; 50% is "
        "a draw, and an interval that holds 50% decides nothing"
    )
    return Table(
        "Probability of improvement", ("X", "Y", "P(X > Y)", "95% interval"), tuple(rows), note, text_columns=2
    )


def standing(results: Results, published: tables.Published | None = None) -> Table:
    """On how many data sets each method's final policies are above the data, and above what is published of it."""
    rows = []
    for method in results.methods:
        runs = [run for dataset in results.datasets if (run := results.cell(dataset, method)) and run.played]
        theirs = [(run, (published or {}).get(run.dataset, {}).get(tables.recipe_name(method))) for run in runs]
        data = _above((run.final, run.dataset_return) for run in runs)
        rows.append((method, *data, *_above((run.final, value[0]) for run, value in theirs if value)))
    header = ("method", "above the data", "apart from it", "above the published", "apart from that")
    note = "above: the mean over seeds is above the data set's mean return"
    note += ", or the number published of the same method" if any((published or {}).values()) else ""
    note += "; apart: the lower end of Student's 95% interval of that mean is, too"
    return Table("Data sets on which a method is above", header, tuple(rows), note)


def _above(pairs: Iterable[tuple[np.ndarray, float]]) -> tuple[str, str]:
    """How many means, and how many lower ends of their intervals, lie above a level; empty where there is none."""
    found = list(pairs)
    above = sum(values.mean() > level for values, level in found)
    apart = [low > level for values, level in found if (low := statistics.lower_bound(values)) is not None]
    return (
        f"{above} of {len(found)}" if found else "",
        f"{sum(apart)} of {len(found)}" if found and len(apart) == len(found) else "",
    )


def _share(estimate: Estimate) -> tuple[str, str]:
    bounds = "" if estimate.low is None else f"{100 * estimate.low:.0f}% to {100 * (estimate.high or 0):.0f}%"
    return f"{100 * estimate.value:.0f}%", bounds


def _within(estimate: Estimate) -> str:
    return "" if estimate.low is None else f"({estimate.low:.1f} to {estimate.high:.1f})"
