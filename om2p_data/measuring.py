"""What benchmarks share: which machine and versions, rates and medians under noise, tables, result files."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from om2p_data.provenance import commit

# OpenMP threads spin for milliseconds after a parallel loop in case another one follows. torch and numba each have such
# threads (and MuJoCo has its own), so on few cores the idle ones of one library take the cores from the others.
QUIET_POOLS = {"OMP_WAIT_POLICY": "PASSIVE"}


def ensure_environment(wanted: Mapping[str, str]) -> dict[str, str]:
    """Start this program again with those environment variables, unless they are set to something already.

    Thread pools read them once, when their library is loaded. Call it first in `main`.

    Returns:
        The values in force, for the results.
    """
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if missing:
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return {name: os.environ[name] for name in wanted}


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system, accelerator, and how busy the machine is right now."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    with contextlib.suppress(ValueError, OSError, AttributeError):
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def versions(*packages: str) -> dict[str, str | None]:
    """Installed version of each distribution, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


@dataclass(frozen=True)
class Rate:
    """Units a second over several repeats; `per_cpu_second` counts the processor time of all threads instead.

    On one thread the two are equal unless other programs took the core away, and then the second still tells.
    """

    median: float
    low: float
    high: float
    per_cpu_second: float


def measure_rates(
    loops: Mapping[Any, Callable[[], int]], repeats: int = 5, seconds: float = 0.3, on_repeat: Callable[[], Any] = int
) -> dict[Any, Rate]:
    """How fast each loop is.

    The loops take turns, so that a slow minute of a shared machine hits all of them and ratios keep their meaning.

    Args:
        loops: name -> a function that does a little work, some milliseconds, and returns how many units it did.
        repeats: measurements of each loop.
        seconds: length of one measurement.
        on_repeat: called after each measurement, for a progress bar.
    """
    wall: dict[Any, list[float]] = {name: [] for name in loops}
    cpu: dict[Any, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop()  # compiles and fills caches
    for _ in range(repeats):
        for name, loop in loops.items():
            loop()  # wakes this loop's threads and sets its thread counts
            start, cpu_start = time.perf_counter(), time.process_time()
            units = loop()  # once at least, however long another program has the core meanwhile
            while (elapsed := time.perf_counter() - start) < seconds:
                units += loop()
            wall[name].append(units / elapsed)
            cpu[name].append(units / (time.process_time() - cpu_start))
            on_repeat()
    return {
        name: Rate(statistics.median(rates), min(rates), max(rates), statistics.median(cpu[name]))
        for name, rates in wall.items()
    }


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a Markdown table, the keys of the first one as its head."""
    head = list(rows[0])
    cells = [head, *([_cell(row[key]) for key in head] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    numeric = [all(isinstance(row[key], int | float | None) for row in rows) for key in head]
    for index, row in enumerate(cells):
        aligned = (f"{c:>{w}}" if right else f"{c:<{w}}" for c, w, right in zip(row, widths, numeric, strict=True))
        print(f"| {' | '.join(aligned)} |")
        if index == 0:
            rule = ("-" * (w - 1) + (":" if right else "-") for w, right in zip(widths, numeric, strict=True))
            print(f"| {' | '.join(rule)} |")


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], *packages: str) -> None:
    """Write a result file: the rows with all that one needs to repeat them.

    Args:
        path: JSON file; its stem names the benchmark.
        rows: measurements.
        settings: what was chosen: repeats, threads, environment variables.
        packages: distributions whose versions matter.
    """
    result = {
        "benchmark": path.stem,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": describe_machine(),
        "versions": versions(*packages),
        "settings": dict(settings),
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def cpu_model() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
