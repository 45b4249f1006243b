"""Errors that a user can mend: one clear line, no traceback on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one line that names the key, file or option and says what would be right.

    Args:
        message: reasons quoted from libraries may have several lines; they are joined.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


def nearest(value: str, valid: Iterable[str], limit: int = 3, cutoff: float = 0.4) -> list[str]:
    """The valid names that look most like `value`, best first."""
    return difflib.get_close_matches(value, list(valid), n=limit, cutoff=cutoff)


def unknown(what: str, value: str, valid: Iterable[str]) -> UserError:
    """An error for a name that does not exist: it offers the nearest names, then lists all of them."""
    names = list(valid)
    near = nearest(value, names)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return UserError(f"unknown {what} {value!r}: {hint}valid: {', '.join(names) if names else '(none)'}")
