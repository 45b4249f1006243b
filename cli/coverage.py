"""om2p-train coverage: how far the actions of trained teams keep to those of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, Root


def coverage(
    policies: Annotated[
        list[Path],
        typer.Argument(help="Run folders, folders with some below, or policy files.", metavar="RUN_OR_POLICY..."),
    ],
    observations: Annotated[int, typer.Option(help="Observations of the data to look at.", min=2)] = 500,
    neighbours: Annotated[int, typer.Option(help="Nearest observations of each that are taken together.", min=2)] = 16,
    seed: Annotated[int, typer.Option(help="Of the observations and of the action noise.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for coverage.md, coverage.csv, and the figures as PNG and PDF.")
    ] = None,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Measure how much of the data's action distribution policies have kept, at observations of the data.

    Their distance from the data's actions, their spread, and which of the behaviour teams' actions they still take.
    """
    from om2p_train import covered
    from om2p_train.reporting import coverage as reporting

    methods, left_out = covered.find(policies)
    found = covered.measure(
        methods, observations=observations, neighbours=neighbours, seed=seed, root=root, progress=not quiet
    )
    print(reporting.text(found, left_out))
    if out is not None:
        paths = reporting.write(found, out, left_out)
        print(f"\nwrote {', '.join(path.name for path in paths)} in {out}")
