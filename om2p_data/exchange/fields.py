"""Arrays of other people's files -> the arrays of `Transitions`; whatever does not fit is named by its file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from om2p_data.errors import UserError


def numbers(values: np.ndarray, label: str, rows: int | None = None) -> np.ndarray:
    """float32 [T, D] from real numbers [T, D] or [T].

    Args:
        values: what the file holds.
        label: its name, for messages.
        rows: the T that is expected.

    Raises:
        UserError: no numbers, another shape, or NaN, infinity or more than float32 holds.
    """
    if values.dtype.kind not in "fiub":
        raise UserError(f"{label} holds {values.dtype}, not numbers")
    if values.ndim not in (1, 2) or not values.size:
        raise UserError(f"{label} has shape {values.shape}; (transitions, components) is needed")
    _check_rows(values, label, rows)
    with np.errstate(over="ignore"):
        plain = np.ascontiguousarray(values.reshape(len(values), -1), dtype=np.float32)
    wrong = ~np.isfinite(plain).all(axis=1)
    if wrong.any():
        raise UserError(f"{label} holds NaN or infinity (first in row {int(wrong.argmax())})")
    return plain


def single(values: np.ndarray, label: str, rows: int) -> np.ndarray:
    """float32 [T] from numbers [T] or [T, 1].

    Raises:
        UserError: as `numbers`, or several columns.
    """
    plain = numbers(values, label, rows)
    if plain.shape[1] != 1:
        raise UserError(f"{label} has shape {values.shape}; one number a transition is needed")
    return plain[:, 0]


def flags(values: np.ndarray, label: str, rows: int) -> np.ndarray:
    """bool [T] from flags, or numbers that are 0 or 1, [T] or [T, 1].

    Raises:
        UserError: another shape, or other numbers.
    """
    plain = single(values, label, rows)
    wrong = (plain != 0) & (plain != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{label} holds {plain[row]} (row {row}); a flag is 0 or 1")
    return plain != 0


def actions(values: np.ndarray, label: str, rows: int, choices: int | None = None) -> tuple[np.ndarray, bool]:
    """float32 [T, A], and whether they are choices (then one-hot).

    Real numbers are continuous actions. Whole numbers (by the type of the array) are choices: one-hot rows where there
    are several columns, else indices.

    Args:
        values: what the file holds.
        label: its name, for messages.
        rows: the T that is expected.
        choices: how many an agent has; by default one more than the largest index that occurs.

    Raises:
        UserError: as `numbers`, rows that are not one-hot, or an index out of range.
    """
    plain = numbers(values, label, rows)
    if values.dtype.kind == "f":
        return plain, False
    if plain.shape[1] > 1:
        wrong = (plain.max(axis=1) != 1) | (plain.sum(axis=1) != 1) | (plain.min(axis=1) != 0)
        if wrong.any():
            raise UserError(f"{label} holds whole numbers in rows that are not one-hot (first: {int(wrong.argmax())})")
        return plain, True
    index = values.reshape(-1).astype(np.int64)
    count = int(index.max()) + 1 if choices is None else choices
    wrong = (index < 0) | (index >= count)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{label} holds choice {index[row]} (row {row}), but there are {count}, from 0 on")
    return np.eye(count, dtype=np.float32)[index], True


def common_state(states: Sequence[np.ndarray]) -> np.ndarray:
    """One state [T, S] from every agent's: the same of all, or all beside each other where they differ."""
    first, *others = states
    if all(np.array_equal(first, other) for other in others):
        return first
    return np.concatenate(states, axis=1)


def _check_rows(values: np.ndarray, label: str, rows: int | None) -> None:
    if rows is not None and len(values) != rows:
        raise UserError(f"{label} has {len(values)} rows, the first agent's observations have {rows}")
