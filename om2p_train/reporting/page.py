"""Results as one self-contained HTML page: tables, figures, data sets and what exactly was run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from om2p_data.inspect.drawing import Draw
from om2p_data.inspect.page import Picture, picture
from om2p_data.inspect.page import render as render_page
from om2p_data.inspect.tables import Table
from om2p_train.reporting import comparison, figures, tables
from om2p_train.results import Results

_CAPTIONS = {
    "curves": "Learning curves: mean over seeds, shaded from the worst to the best seed",
    "returns": "Final policies: every seed as a dot, the mean with its 95% interval",
    "scores": "Normalised scores over the common data sets, with 95% intervals",
    "profiles": "Performance profiles, with pointwise 95% intervals",
    "improvement": "Probability that a run of the row's method scores more than one of the column's",
}


@dataclass(frozen=True)
class Piece:
    """A table, figures, or both."""

    heading: str = ""
    table: Table | None = None
    figures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page that can be linked to."""

    id: str
    title: str
    parts: tuple[Piece, ...]
    details: tuple[tuple[str, str], ...] = ()


def render(title: str, results: Results, first: Sequence[Section] = ()) -> str:
    """The page.

    Args:
        title: of the page.
        results: what it shows.
        first: sections to stand before the usual ones.
    """
    drawn = figures.plan(results)
    sections = [
        *first,
        Section("returns", "Returns", tuple(_returns(results, drawn, with_table=not first))),
        Section("comparison", "Comparison", tuple(_comparison(results, drawn))),
        Section("runs", "Every run", (piece(tables.details(results)),)),
        Section("cost", "Time and memory", (piece(tables.costs(results)),)),
        Section("data", "Data sets", (piece(tables.datasets(results)),)),
        Section("setup", "What was run", (piece(tables.configurations(results)),), tuple(_recipes(results))),
    ]
    many = f"{len(results.runs)} runs of {len(results.methods)} methods on {len(results.datasets)} data sets"
    return render_page(
        Path(__file__).with_name("report.html"),
        title=title,
        lead=f"{many}, scale {results.scales}.",
        notes=results.notes(),
        sections=[section for section in sections if section.parts],
    )


def shown(caption: str, draw: Draw) -> Piece:
    """A figure alone."""
    return Piece(figures=(picture(caption, draw),))


def _returns(results: Results, drawn: dict[str, Draw], *, with_table: bool) -> list[Piece]:
    several = len(results.datasets) > 1
    own = tables.grid(results) if several else tables.of_dataset(results, results.datasets[0])
    pieces = [piece(own)] if with_table else []
    return pieces + [shown(_CAPTIONS[name], drawn[name]) for name in ("returns", "curves") if name in drawn]


def _comparison(results: Results, drawn: dict[str, Draw]) -> list[Piece]:
    found = [comparison.aggregates(results), comparison.groups(results), comparison.improvement(results)]
    pictures = [["scores", "profiles"], [], ["improvement"]]
    pieces = []
    for table, names in zip(found, pictures, strict=True):
        if table is not None:
            own = tuple(picture(_CAPTIONS[name], drawn[name]) for name in names)
            pieces.append(Piece(table.title, _unmarked(table), own))
    return pieces


def piece(table: Table, *drawn: Picture) -> Piece:
    """A table with figures; what is marked in Markdown has a sign of its own on a page."""
    return Piece(table=_unmarked(table), figures=drawn)


def _unmarked(table: Table) -> Table:
    """For a page, which has no Markdown: the best of a row get a sign of their own."""
    rows = tuple(
        tuple(f"{tables.plain(cell)} •" if tables.is_marked(cell) else cell for cell in row) for row in table.rows
    )
    return Table(table.title, table.header, rows, table.note.replace("bold:", "•:"), table.text_columns)


def _recipes(results: Results) -> list[tuple[str, str]]:
    pairs = zip(results.runs, results.labels, strict=True)
    return [
        (f"{tables.short(run.dataset)}: {label}", json.dumps(run.recipe, indent=1, ensure_ascii=False))
        for run, label in pairs
    ]
