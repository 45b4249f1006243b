"""Tables, figures and pages from runs. Nothing is shown that their folders or records do not contain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from om2p_data.errors import UserError
from om2p_data.inspect import page as pages
from om2p_data.inspect.drawing import save_all
from om2p_data.inspect.tables import Table
from om2p_data.storage import reason, write_whole
from om2p_train import records
from om2p_train.records import RECORDS_FILE
from om2p_train.reporting import comparison, figures, page, tables
from om2p_train.reporting.page import Section
from om2p_train.results import Results

FIGURE_TYPES = ("png", "pdf")


def text(results: Results) -> str:
    """What the terminal shows, in Markdown: a table a data set, or of several one grid and the comparison."""
    if len(results.datasets) > 1:
        found = [tables.grid(results), comparison.aggregates(results)]
    else:
        found = [tables.of_dataset(results, dataset) for dataset in results.datasets]
    notes = "\n".join(f"- {note}" for note in results.notes())
    return "\n\n".join([*(tables.markdown(table) for table in found if table is not None), *([notes] if notes else [])])


def write(
    results: Results,
    folder: Path,
    title: str = "Results",
    main: Sequence[Table] = (),
    first: Sequence[Section] = (),
) -> list[Path]:
    """Write all tables and figures.

    Args:
        results: what they show.
        folder: for table.md, table.tex, results.csv, runs.jsonl, the figures as PNG and PDF, and report.html.
        title: of the page.
        main: tables to write as table.tex, and as the first of table.md; by default that of the returns.
        first: sections of the page to stand before the usual ones.

    Returns:
        The paths written.

    Raises:
        UserError: the folder cannot be written.
    """
    several = len(results.datasets) > 1
    main = main or [tables.grid(results) if several else tables.of_dataset(results, results.datasets[0])]
    compared = (comparison.aggregates(results), comparison.groups(results), comparison.improvement(results))
    others = (*compared, tables.details(results))
    notes = "".join(f"- {note}\n" for note in results.notes())
    contents = {
        "table.md": "\n\n".join(tables.markdown(table) for table in (*main, *others) if table is not None)
        + "\n"
        + (f"\n{notes}" if notes else ""),
        "table.tex": "\n".join(map(tables.latex, main)),
        "results.csv": tables.comma_separated(results),
    }
    drawn = save_all(figures.plan(results), folder, file_types=FIGURE_TYPES)
    paths = []
    for name, content in contents.items():
        try:
            write_whole(folder / name, lambda partial, content=content: partial.write_text(content, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write {folder / name}: {reason(error)}") from error
        paths.append(folder / name)
    records.write(results.runs, folder / RECORDS_FILE)
    pages.write(page.render(title, results, first), folder / "report.html")
    return [*paths, folder / RECORDS_FILE, *drawn, folder / "report.html"]
