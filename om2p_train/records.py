"""Run records: what finished runs say, a line of JSON each, in one file that a repository can keep.

A record has the facts of run.json that reports show, and the mean return of every seed at every evaluation. Files can
be joined end to end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from om2p_data.errors import UserError
from om2p_data.storage import reason, write_whole
from om2p_train.recorded_run import Facts, Run, checked, with_returns

RECORDS_FILE = "runs.jsonl"


class _Record(Facts):
    """One line.

    Attributes:
        folder: where the run lies, or lay, as seen from the file's folder; of far runs the end of it.
        updates: [U], when the policy was evaluated.
        returns: [U, S], mean over the evaluation episodes of every seed, all digits.
    """

    folder: str
    updates: tuple[int, ...]
    returns: tuple[tuple[float, ...], ...]


def write(runs: Iterable[Run], path: Path) -> None:
    """Write records of finished runs, in their order; of runs that were joined, one each.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [part for whole in runs for part in whole.parts]
    lines = [
        _Record(
            **part.facts.model_dump(), folder=place, updates=part.updates.tolist(), returns=part.returns.tolist()
        ).model_dump_json()
        for part, place in zip(parts, _places(parts, path), strict=True)
    ]
    text = "".join(f"{line}\n" for line in lines)
    try:
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def _places(runs: Sequence[Run], path: Path) -> list[str]:
    """Folders as seen from a file of records; where one shares but the root with it, as little as tells them apart.

    A file that is given to others should not say how somebody's machine is laid out.
    """
    own, start = [Path(os.path.abspath(run.folder)) for run in runs], Path(os.path.abspath(path.parent))
    if not any(_apart(folder, start) for folder in own):
        return [Path(os.path.relpath(folder, start)).as_posix() for folder in own]
    longest = max(len(folder.parts) for folder in own)
    ends = ([Path(*folder.parts[1:][-length:]).as_posix() for folder in own] for length in range(1, longest))
    whole = [folder.as_posix() for folder in own]  # on drives of several letters no end tells all of them apart
    return next((places for places in ends if len(set(places)) == len(set(own))), whole)


def _apart(one: Path, other: Path) -> bool:
    return one.anchor != other.anchor or os.path.commonpath([one, other]) == one.anchor


def read(path: Path) -> list[Run]:
    """The runs of a file of records; their folders need not exist.

    Raises:
        UserError: it cannot be read, holds no runs, or a line is damaged or of another version.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    runs = [_read(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not runs:
        raise UserError(f"{path} holds no run records")
    return runs


def _read(path: Path, number: int, line: str) -> Run:
    place = f"line {number} of {path}"
    raw = checked(place, {}, _table, line)
    return checked(place, raw, _run, path, raw)


def _table(line: str) -> dict[str, Any]:
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("it holds no table")
    return raw


def _run(path: Path, raw: dict[str, Any]) -> Run:
    record = _Record.model_validate(raw)
    if not record.finished:
        raise ValueError("the run has not finished")
    folder = Path(os.path.normpath(path.parent / record.folder))
    return with_returns(folder, Facts.model_validate(raw), record.updates, record.returns, "the record")
