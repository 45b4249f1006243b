"""How far a run is: a bar on a terminal, a line an evaluation where the output is kept in a file."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """Shown on standard error.

    Args:
        label: what runs.
        updates: of the whole run.
        done: of them, before this start.
        show: whether to show anything.
    """

    def __init__(self, label: str, updates: int, done: int, show: bool):
        terminal = sys.stderr.isatty()
        self._label, self._updates, self._first = label, updates, done
        self._lines = show and not terminal
        self._bar = tqdm(
            total=updates, initial=done, desc=label, unit="update", dynamic_ncols=True, disable=not (show and terminal)
        )
        self._began = time.perf_counter()

    def step(self, updates: int) -> None:
        """So many updates more."""
        self._bar.update(updates)

    def evaluated(self, update: int, mean_return: float) -> None:
        """The return of the policy after an update."""
        self._bar.set_postfix_str(f"return {mean_return:.1f}")
        if self._lines:
            rate = (update - self._first) / (time.perf_counter() - self._began)
            left = tqdm.format_interval((self._updates - update) / rate)
            print(
                f"{self._label}: update {update} of {self._updates}, return {mean_return:.1f}, {rate:.3g} updates/s, "
                f"{left} left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
