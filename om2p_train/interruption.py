"""Ctrl-C and SIGTERM as a wish that a loop grants where it loses nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and its checkpoint is written, if it had begun.

    Args:
        number: the signal that asked.
        update: the checkpoint's; None where nothing has been written yet.
    """

    def __init__(self, number: int, update: int | None):
        super().__init__("stopped before the run began" if update is None else f"stopped at update {update}")
        self.number = number
        self.update = update


@contextlib.contextmanager
def wishes() -> Iterator[Callable[[], int | None]]:
    """Within the block, the first SIGINT or SIGTERM only notes its number, which the yielded function returns.

    The handlers of before are back with that first signal, so that a second one stops at once, and after the block.
    Signals that are ignored (a background job's Ctrl-C) stay so. Outside of the main thread, nothing is changed.
    """
    asked: list[int] = []
    before = {}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        put_back()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before.update({number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)})
        for number in before:
            signal.signal(number, note)
    try:
        yield lambda: asked[0] if asked else None
    finally:
        put_back()
