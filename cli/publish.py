"""om2p-train publish: a page of results for a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def publish(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders <experiment>-<scale> with runs.jsonl, as `om2p-train reproduce` leaves them, or folders that "
            "hold such folders. Default: reproduce."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The page, in Markdown; its figures go into a folder of its name beside it.")
    ] = Path("RESULTS.md"),
) -> None:
    """Write a page with the tables and figures of all experiments that have runs, beside the papers' numbers.

    The same runs give the same page. What is missing is named.
    """
    from om2p_train.reporting import publication

    page, *pictures = publication.write(folders or [Path("reproduce")], out)
    print(f"wrote {page}" + (f" and {len(pictures)} figures in {page.with_suffix('')}" if pictures else ""))
