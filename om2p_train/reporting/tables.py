"""Results as tables of text, and the tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from om2p_data.inspect.tables import Table
from om2p_data.inspect.tables import number as rounded
from om2p_data.recipe import bundled
from om2p_train import statistics
from om2p_train.recorded_run import Run
from om2p_train.results import Results
from om2p_train.statistics import Estimate

Published = Mapping[str, Mapping[str, Sequence[float]]]  # data set -> recipe -> (mean,) or (mean, standard deviation)

_BOLD = "**"
_MOST_POLICIES = 3  # named of a data set
_ESCAPES = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "{": r"\{", "}": r"\}"}


def of_dataset(results: Results, dataset: str) -> Table:
    """Final returns on one data set: mean ± sample standard deviation over seeds."""
    runs = results.of(dataset)
    first = runs[0]
    rows = [
        ("random actions", *_pair(first, np.array([first.random_return], float)), ""),
        ("data set mean", *_pair(first, np.array([first.dataset_return])), ""),
        *((label, *_pair(run, run.final), str(len(run.final))) for label, run in _labelled(results, dataset)),
    ]
    title = f"{dataset}, scale {results.scales}: final policy, mean ± std over seeds"
    return Table(title, ("policy", "return", "normalised", "seeds"), tuple(rows))


def grid(results: Results, published: Published | None = None, source: str = "") -> Table:
    """Raw returns of the final policies, data sets by methods, beside what is published.

    The best of each row is marked, and all that its runs do not tell from it.
    """
    columns = [(method, _published_column(method, published)) for method in results.methods]
    header = ["data set", "data", *(name for pair in columns for name in pair if name)]
    rows = []
    for dataset in results.datasets:
        runs = {method: results.cell(dataset, method) for method in results.methods}
        best = statistics.indistinguishable({name: run.final for name, run in runs.items() if run and run.played})
        cells = [short(dataset), f"{results.of(dataset)[0].dataset_return:.1f}"]
        for method, also in columns:
            run = runs[method]
            cells.append("" if run is None or not run.played else marked(run.final, best=method in best))
            if also:
                cells.append(_spread_published((published or {}).get(dataset, {}).get(recipe_name(method))))
        rows.append(tuple(cells))
    note = f"scale {results.scales}; raw team returns of the final policies, mean ± std over {_seeds(results)}; "
    note += "bold: the best, and all that Welch's t-test at 5% does not tell from it"
    if any(also for _, also in columns):
        note += f"; columns marked * are the numbers of {source}, from other data and at the paper's scale"
    return Table("Final returns", tuple(header), tuple(rows), note)


def details(results: Results) -> Table:
    """Every run: final and best apart, raw and normalised, with intervals."""
    header = ("data set", "method", "seeds", "updates", "episodes", "final", "IQM", "IQM 95%", "normalised")
    header += ("normalised IQM", "its 95%", "best", "best normalised")
    rows = []
    for run, label in zip(results.runs, results.labels, strict=True):
        final, normalized = run.final, run.normalized(run.final)
        raw = statistics.iqm([final]) if run.played else None
        score = statistics.iqm([normalized]) if run.played and normalized is not None else None
        rows.append(
            (
                short(run.dataset),
                label,
                str(len(final)),
                f"{run.updates[-1]:,}" if run.played else "",
                str(run.episodes) if run.played else "",
                *_point(run, final, raw),
                _pair(run, final)[1],
                *bounds(score),
                *_pair(run, run.best),
            )
        )
    note = (
        "final: of the last policy; best: of each seed's best evaluation, which is chosen by the very returns that it "
        "reports and so flatters; mean ± std over seeds; intervals by bootstrap over seeds, none of a single one"
    )
    return Table("Every run", header, tuple(rows), note, text_columns=2)


def costs(results: Results, published: Mapping[str, Sequence[float]] | None = None, source: str = "") -> Table:
    """Time and memory of every run, beside published (MB, seconds) by recipe."""
    header = ["data set", "method", "seeds", "updates", "updates/s", "training s", "evaluation s", "total s", "peak MB"]
    header += [f"total s, {source}*", f"MB, {source}*"] if published else []
    rows = []
    for run, label in zip(results.runs, results.labels, strict=True):
        timing = run.facts.timing
        training, evaluation = timing.training_seconds, timing.evaluation_seconds
        total = None if training is None or evaluation is None else training + evaluation
        cells = [short(run.dataset), label, str(len(run.final)), f"{run.recipe['run']['updates']:,}"]
        values = (timing.updates_per_second, training, evaluation, total, timing.peak_memory_mb)
        cells += [rounded(value) for value in values]
        if published:
            memory, seconds = published.get(label, (None, None))
            cells += [rounded(seconds), rounded(memory)]
        rows.append((*cells, run.facts.hardware, str(run.facts.threads or "")))
    note = (
        "seconds that the run counted itself, without loading; peak memory is the accelerator's, or on a CPU the "
        f"whole process's; scale {results.scales}"
    )
    if any(run.joined for run in results.runs):
        note += "; seeds that were trained apart are one line, with the sum of their seconds"
    if published:
        note += f"; columns marked * are {source}'s figures, from its own machine, networks and code"
    return Table("Time and memory", (*header, "hardware", "threads"), tuple(rows), note, text_columns=2)


def configurations(results: Results) -> Table:
    """What was run: each method's overrides, versions and commit."""
    rows = [
        (
            short(run.dataset),
            label,
            run.scale,
            ", ".join(map(str, run.facts.seeds)),
            " ".join(run.settings),
            run.facts.versions.get("om2p") or "",
            run.facts.commit or "",
            run.facts.started[:10],
            str(run.folder),
        )
        for whole, label in zip(results.runs, results.labels, strict=True)
        for run in whole.parts
    ]
    header = ("data set", "method", "scale", "seeds", "overrides", "om2p", "commit", "started", "folder")
    return Table("What was run", header, tuple(rows), text_columns=len(header))


def datasets(results: Results) -> Table:
    """What the runs say about the data that they learned from."""
    rows = []
    for dataset in results.datasets:
        run = results.of(dataset)[0]
        card = run.facts.dataset_card
        made = "; ".join(
            f"{policy.name} ({policy.algorithm}, seed {policy.seed}): {rounded(policy.return_mean)}"
            for policy in card.policies[:_MOST_POLICIES]
        )
        more = len(card.policies) - _MOST_POLICIES
        rows.append(
            (
                dataset,
                card.summary,
                "" if card.transitions is None else f"{card.transitions:,}",
                "" if card.episodes is None else f"{card.episodes:,}",
                spread_of(run.dataset_return, card.team_return.get("std")),
                "" if run.random_return is None else f"{run.random_return:.1f}",
                made + (f" and {more} more" if more > 0 else ""),
                run.dataset_hash[:12],
            )
        )
    header = ("data set", "task", "transitions", "episodes", "return", "random actions", "made by", "content hash")
    return Table("Data sets", header, tuple(rows), "return: mean ± std over episodes", text_columns=2)


def markdown(table: Table) -> str:
    """A table in Markdown, its title above and its note below."""
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    words = [index < table.text_columns for index in range(len(widths))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, words, strict=True)
        padded = [cell.ljust(width) if word else cell.rjust(width) for cell, width, word in cells]
        return "| " + " | ".join(padded) + " |"

    dashes = [(width - 1) * "-" for width in widths]
    rule = [f":{dash}" if word else f"{dash}:" for dash, word in zip(dashes, words, strict=True)]
    text = "\n".join([table.title, "", line(rows[0]), line(rule), *map(line, rows[1:])])
    return text + (f"\n\n{table.note[0].upper()}{table.note[1:]}." if table.note else "")


def comma_separated(results: Results) -> str:
    """Every seed of every run with full digits, for programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["dataset", "dataset_hash", "method", "recipe", "scale", "seed", "updates", "evaluation_episodes"]
    header += ["final_return", "best_return", "final_normalised", "best_normalised", "dataset_return", "random_return"]
    writer.writerow([*header, "folder"])
    for run, label in zip(results.runs, results.labels, strict=True):
        final, best = run.normalized(run.final), run.normalized(run.best)
        for index, (seed, folder) in enumerate(run.folders.items()):
            values = [run.final[index], run.best[index]]
            values += ["", ""] if final is None or best is None else [final[index], best[index]]
            values += [run.dataset_return, run.random_return]
            writer.writerow(
                [run.dataset, run.dataset_hash, label, run.name, run.scale, seed]
                + [run.updates[-1] if run.played else 0, run.episodes]
                + ["" if value is None or value != value else value for value in values]
                + [folder]
            )
    return out.getvalue()


def latex(table: Table) -> str:
    """A table in LaTeX, as wide as the text; its note stands below."""
    columns = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in (table.header, *table.rows)]
    note = [rf"\par\smallskip\footnotesize {_tex(table.note[:1].upper() + table.note[1:])}."] if table.note else []
    return "\n".join(
        [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.title)}.}}",
            rf"\resizebox{{\textwidth}}{{!}}{{\begin{{tabular}}{{{columns}}}",
            *("\\toprule", lines[0], "\\midrule", *lines[1:], "\\bottomrule"),
            r"\end{tabular}}",
            *note,
            r"\end{table}",
            "",
        ]
    )


def marked(values: np.ndarray, *, best: bool) -> str:
    """Mean ± standard deviation, marked where it is the best of its row."""
    return mark(spread(values), best=best)


def mark(cell: str, *, best: bool) -> str:
    """A cell, marked where it is the best."""
    return f"{_BOLD}{cell}{_BOLD}" if best else cell


def plain(cell: str) -> str:
    """A cell without marks."""
    return cell.removeprefix(_BOLD).removesuffix(_BOLD)


def is_marked(cell: str) -> bool:
    """Whether a cell is marked as the best of its row."""
    return cell.startswith(_BOLD)


def short(dataset: str) -> str:
    """`<task> <tier>` of one of our data sets in its first version, otherwise the whole id."""
    namespace, _, rest = dataset.partition("/")
    task, _, tier = rest.partition("/")
    return f"{task} {tier.removesuffix('-v0')}" if namespace == "om2p" and tier.endswith("-v0") else dataset


def spread(values: np.ndarray) -> str:
    """Mean ± sample standard deviation; of a single value, itself."""
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def spread_of(mean: float, deviation: float | None) -> str:
    """Mean ± standard deviation, if that is known."""
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _labelled(results: Results, dataset: str) -> list[tuple[str, Run]]:
    pairs = zip(results.labels, results.runs, strict=True)
    return [(label, run) for label, run in pairs if run.dataset == dataset]


def _pair(run: Run, returns: np.ndarray) -> tuple[str, str]:
    """Return and normalised score; the latter is empty where there are no references, both where nobody could play."""
    if np.isnan(returns).any():
        return "", ""
    normalized = run.normalized(returns)
    return spread(returns), "" if normalized is None else spread(normalized)


def _point(run: Run, returns: np.ndarray, estimate: Estimate | None) -> tuple[str, str, str]:
    return (_pair(run, returns)[0], *bounds(estimate))


def bounds(estimate: Estimate | None) -> tuple[str, str]:
    """Value and interval; empty where there are none."""
    if estimate is None:
        return "", ""
    bounds = "" if estimate.low is None else f"{estimate.low:.1f} to {estimate.high:.1f}"
    return f"{estimate.value:.1f}", bounds


def _published_column(method: str, published: Published | None) -> str | None:
    """Name of the column of published numbers beside a method's, None if there are none."""
    name = recipe_name(method)
    has = any(name in by_recipe for by_recipe in (published or {}).values())
    return f"{name}*" if has and method == name else None


def recipe_name(method: str) -> str:
    name = method.partition(",")[0]
    return name if name in bundled("train") else method


def _spread_published(value: Sequence[float] | None) -> str:
    return "" if value is None else spread_of(value[0], value[1] if len(value) > 1 else None)


def _seeds(results: Results) -> str:
    counts = sorted({len(run.final) for run in results.runs})
    return "a single seed" if counts == [1] else f"{'/'.join(map(str, counts))} seeds"


def _tex(text: str) -> str:
    escaped = "".join(_ESCAPES.get(letter, letter) for letter in plain(text))
    return rf"\textbf{{{escaped}}}" if is_marked(text) else escaped
