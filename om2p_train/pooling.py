"""Seeds that were trained later beside those of before: runs that differ in nothing else are one.

Seeds do not touch each other within a run, so it does not matter which of them were stacked together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from om2p_train.recorded_run import Run, Timing


def pool(runs: Iterable[Run]) -> list[Run]:
    """Runs with finished ones of the same recipe on the same data joined, as long as no two have a seed in common.

    Args:
        runs: finished or not.

    Returns:
        Those that were joined are the `parts` of a run, which like its seeds ascend. Of runs that share a seed the one
        with more seeds is joined to others, of as many the later; the rest stand as they are.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for index, run in enumerate(runs):
        groups[_same(run) if run.facts.finished else str(index)].append(run)
    found = []
    for group in groups.values():
        apart: list[Run] = []
        for run in sorted(group, key=lambda run: (len(run.facts.seeds), run.facts.started), reverse=True):
            if not any({*run.facts.seeds} & {*other.facts.seeds} for other in apart):
                apart.append(run)
        kept = [run for run in group if not any(run is one for one in apart)]
        found += [_joined(sorted(apart, key=lambda run: run.facts.seeds)) if len(apart) > 1 else apart[0], *kept]
    return found


def _same(run: Run) -> str:
    """What runs have in common that differ in their seeds, and in where and when they were made, alone."""
    version = run.facts.versions.get("om2p")
    key = (run.name, run.dataset, run.dataset_hash, run.scale, sorted(run.settings), run.recipe, version)
    return json.dumps([*key, run.updates.tolist()], sort_keys=True)


def _joined(runs: Sequence[Run]) -> Run:
    seeds = np.concatenate([run.facts.seeds for run in runs])
    order = seeds.argsort()
    first = runs[0]
    facts = first.facts.model_copy(
        update={
            "seeds": tuple(seeds[order].tolist()),
            "started": max(run.facts.started for run in runs),
            "hardware": ", ".join(dict.fromkeys(run.facts.hardware for run in runs)),
            "threads": first.facts.threads if len({run.facts.threads for run in runs}) == 1 else None,
            "commit": ", ".join(dict.fromkeys(run.facts.commit or "unknown" for run in runs)),
            "timing": _together([run.facts.timing for run in runs]),
        }
    )
    returns = np.concatenate([run.returns for run in runs], axis=1)[:, order]
    return replace(first, facts=facts, returns=returns, joined=tuple(runs))


def _together(every: Sequence[Timing]) -> Timing:
    """What they took, one after the other."""

    def over(name: str, of: Callable[[list[float]], float]) -> float | None:
        values = [getattr(timing, name) for timing in every]
        return None if None in values else of(values)

    return Timing(
        training_seconds=over("training_seconds", sum),
        evaluation_seconds=over("evaluation_seconds", sum),
        peak_memory_mb=over("peak_memory_mb", max),
    )
