"""Whether a long run holds more memory at its end than at its beginning.

python -m om2p_train.bench.endurance RECIPE TASK DEVICE SCALE UPDATES OUT [KEY=VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from om2p_data.measuring import write_results
from om2p_train.bench.cases import Case, learner_of, made_up
from om2p_train.config import Scale

_POINTS = 50  # at which memory is read
_STATUS = Path("/proc/self/status")


def held_mb(device: str) -> float:
    """What the process holds of the CPU's memory, or of the device's, in 10^6 bytes."""
    if device != "cpu":
        return torch.cuda.memory_reserved() / 1e6
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    recipe, task, device, scale, updates, out, *settings = sys.argv[1:]
    case = Case(recipe, task, 1, tuple(settings), device)
    _, learner = learner_of(case, case.resolve(Scale(scale)), made_up(task, 100_000))
    total = int(updates)
    rows = []
    for point in tqdm(range(1, _POINTS + 1), desc="endurance", disable=not sys.stderr.isatty()):
        while learner.updates < total * point // _POINTS:
            learner.update(total * point // _POINTS - learner.updates)
        rows.append({"updates": learner.updates, "memory_mb": held_mb(device)})
    facts = {"recipe": recipe, "task": task, "device": device, "scale": scale, "set": settings}
    write_results(Path(out), rows, facts, "om2p", "torch", "numba")
    print(f"after {rows[0]['updates']:,} updates {rows[0]['memory_mb']:.1f} MB", end=", ")
    print(f"after {rows[-1]['updates']:,} {rows[-1]['memory_mb']:.1f} MB")


if __name__ == "__main__":
    main()
