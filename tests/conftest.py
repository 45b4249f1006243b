"""Set-up that all tests share."""

import hashlib
import os
from pathlib import Path

# numba reuses a compiled kernel while the file of its outermost function is unchanged, so after an edit of the shared
# physics the tests would go on testing the old one. A cache per content of the whole package cannot.
_TESTS = Path(__file__).parent
_SOURCES = sorted((_TESTS.parent / "om2p_data" / "envs" / "particle").glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]
os.environ["NUMBA_CACHE_DIR"] = str(_TESTS / "__pycache__" / f"kernels-{_DIGEST}")
