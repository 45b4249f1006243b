"""What a validation finds, one line a check."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: name of the check.
        severity: OK, WARNING (loads and can be learned from, but look at it) or ERROR (do not use it as it is).
        message: what is the case, in one line.
        count: how many places are affected, 0 where nothing is wrong.
        place: the first of them.
    """

    check: str
    severity: Severity
    message: str
    count: int = 0
    place: str | None = None

    def __str__(self) -> str:
        many = f" ({self.count:,} times, first: {self.place})" if self.count > 1 else f" ({self.place})"
        return f"{self.severity.value:8}{self.check:14}{self.message}{many if self.place else ''}"


@dataclass
class _Problem:
    severity: Severity
    count: int
    place: str | None


class Report:
    """Collects findings while the data go by, block after block; checks keep the order of their first mention."""

    def __init__(self) -> None:
        self._fine: dict[str, str] = {}
        self._problems: dict[str, dict[str, _Problem]] = {}

    def fine(self, check: str, message: str) -> None:
        """What to say of a check if it finds no problem."""
        self._fine[check] = message
        self._problems.setdefault(check, {})

    def problem(
        self,
        check: str,
        message: str,
        place: str | None = None,
        *,
        count: int = 1,
        severity: Severity = Severity.ERROR,
    ) -> None:
        """Something wrong, `count` times; the same message again adds up."""
        known = self._problems.setdefault(check, {})
        if message in known:
            known[message].count += count
        else:
            known[message] = _Problem(severity, count, place)

    def has_problem(self, check: str) -> bool:
        return bool(self._problems.get(check))

    def findings(self) -> list[Finding]:
        found = []
        for check, problems in self._problems.items():
            if not problems:
                found.append(Finding(check, Severity.OK, self._fine[check]))
            for message, problem in problems.items():
                found.append(Finding(check, problem.severity, message, problem.count, problem.place))
        return found
