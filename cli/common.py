"""What both command lines share: clean errors, and how seeds and settings are written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

# Idle OpenMP threads of one library must yield the cores to the threads of another (torch, numba and MuJoCo each have
# a pool); spinning costs a factor of three on two cores. Read when the first OpenMP runtime loads, so set before. The
# benchmark leaves all as it is: its peers have one pool each and are at their best when that spins.
if sys.argv[1:2] != ["bench"]:
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from om2p_data.errors import UserError

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe: table.key=value. Repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Root = Annotated[Path | None, typer.Option(help="Folder of data sets. Default: MINARI_DATASETS_PATH or Minari's.")]


_MOST_SEEDS = 1_000  # what comes after is a slip of the finger, and would fill the memory before anybody could say so


def guarded(app: Callable[[], object]) -> None:
    """Run a command line; bad input ends it with one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse_names(option: str, text: str) -> list[str]:
    """`cn,hc` -> list of names.

    Raises:
        UserError: there are none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"{option} {text!r} names nothing: write names with commas, or leave it out")
    return names


def parse_seeds(text: str) -> list[int]:
    """`0-4`, `0,3,7` or a mix of both -> list of seeds.

    Raises:
        UserError: anything else, or absurdly many.
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            some = range(int(first), int(last if dash else first) + 1)
            if len(seeds) + (some.stop - some.start) > _MOST_SEEDS:
                raise UserError(f"--seeds {text!r} names more than {_MOST_SEEDS:,} seeds")
            seeds += some
    except UserError:
        raise
    except ValueError:
        raise UserError(f"--seeds takes numbers and ranges such as 0-4 or 0,2,5, not {text!r}") from None
    if not seeds:
        raise UserError(f"--seeds {text!r} names no seed: write the smaller number first")
    return seeds
