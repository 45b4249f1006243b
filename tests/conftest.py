"""Set-up that all tests share."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# numba reuses a compiled kernel while the file of its outermost function is unchanged, so after an edit of the shared
# physics the tests would go on testing the old one. A cache per content of the whole package cannot.
_TESTS = Path(__file__).parent
_SOURCES = sorted((_TESTS.parent / "om2p_data" / "envs" / "particle").glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]
os.environ["NUMBA_CACHE_DIR"] = str(_TESTS / "__pycache__" / f"kernels-{_DIGEST}")


@pytest.fixture(autouse=True, scope="session")
def _heeding_ctrl_c() -> Iterator[None]:
    """A shell ignores Ctrl-C for what it starts in the background; tests send it, to themselves and their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
