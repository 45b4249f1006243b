"""Which code made a file."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]


def origin(packages: Iterable[str]) -> dict[str, Any]:
    """What a collection says about the code that it ran on: commit, versions of these packages, Python."""
    return {
        "commit": commit(),
        "packages": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """Commit of the checkout that the code runs from, `-dirty` where tracked files differ from it; None elsewhere."""
    top = _git("rev-parse", "--show-toplevel")
    # Installed into an environment inside somebody's repository, the code is not of that repository.
    if top is None or Path(top).resolve() != _ROOT:
        return None
    return _git("describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
