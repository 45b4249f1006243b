"""Where the benchmarks' result files lie."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
