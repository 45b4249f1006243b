"""Tables and figures from run folders. Nothing is shown that the folders do not contain."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from om2p_data.envs.registry import TASKS, Task
from om2p_data.errors import UserError
from om2p_train.run_folder import EVALUATIONS_FILE, RUN_FILE


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    Attributes:
        name: the recipe's name.
        task: row of the task table, None for environments of other people.
        folder: where it lies.
        recipe: its tables.
        dataset: data set id; dataset_hash: of its content; dataset_return: its mean team return.
        random_return: mean return of uniform actions, measured when the run started; None where nothing can be played.
        updates: [U], when the policy was evaluated; U = 0 where nothing can be played.
        returns: [U, S], mean over the evaluation episodes of every seed.
        scale: scale of the recipe.
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    task: Task | None
    dataset: str
    dataset_hash: str
    dataset_return: float
    random_return: float | None
    updates: np.ndarray
    returns: np.ndarray
    scale: str

    @property
    def final(self) -> np.ndarray:
        """Returns of the final policy, one a seed, [S]; NaN where there are none."""
        return self.returns[-1] if len(self.returns) else np.full(self.returns.shape[1], np.nan)


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: not a run folder, the run has not finished, or its files are damaged.
    """
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"{folder} is not a run folder: it has no {RUN_FILE}")
    try:
        facts = json.loads((folder / RUN_FILE).read_text())
        if facts["finished"]:
            return _read(folder, facts)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"the run in {folder} is damaged: {type(error).__name__}: {error}") from error
    raise UserError(f"the run in {folder} has not finished")


def _read(folder: Path, facts: dict[str, Any]) -> Run:
    by_update: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (folder / EVALUATIONS_FILE).open(newline="") as file:
        for row in csv.DictReader(file):
            by_update[int(row["update"])][int(row["seed"])].append(float(row["return"]))
    returns = [[np.mean(by_seed[seed]) for seed in facts["seeds"]] for by_seed in by_update.values()]
    return Run(
        name=facts["recipe_name"],
        folder=folder,
        recipe=facts["recipe"],
        task=TASKS.get(facts["task"]),
        dataset=facts["dataset"],
        dataset_hash=facts["dataset_hash"],
        dataset_return=facts["dataset_return_mean"],
        random_return=facts["random_return_mean"],
        updates=np.array(list(by_update)),
        returns=np.array(returns).reshape(len(returns), len(facts["seeds"])),
        scale=facts["scale"],
    )


def read_all(folders: Sequence[Path]) -> list[Run]:
    """Runs on one data set, in the given order.

    Raises:
        UserError: no runs, or runs on different data sets.
    """
    runs = [read(folder) for folder in folders]
    if not runs:
        raise UserError("name at least one run folder")
    datasets = sorted({run.dataset for run in runs})
    if len(datasets) > 1:
        raise UserError(f"these runs learned from different data sets: {', '.join(datasets)}; report one at a time")
    other = next((run for run in runs if run.dataset_hash != runs[0].dataset_hash), None)
    if other is not None:
        raise UserError(
            f"{other.dataset} was another data set for the run in {other.folder} than for the one in {runs[0].folder} "
            "(content hashes differ): report them apart"
        )
    return runs


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its recipe's, and where that is not enough, what else tells it from its namesakes."""
    counts = Counter(run.name for run in runs)
    found = [run.name if counts[run.name] == 1 else _full_name(run, runs) for run in runs]
    twice = Counter(found)
    return [label if twice[label] == 1 else f"{label} ({run.folder})" for label, run in zip(found, runs, strict=True)]


def _full_name(run: Run, runs: Sequence[Run]) -> str:
    """The recipe's name with the keys in which its runs differ."""
    tables = [_flat(other) for other in runs if other.name == run.name]
    own = _flat(run)
    differing = sorted(key for key in own if any(table.get(key) != own[key] for table in tables))
    return ", ".join([run.name, *(f"{key.rpartition('.')[2]}={own[key]}" for key in differing)])


def _flat(run: Run) -> dict[str, Any]:
    tables = {"scale": run.scale}
    for table, values in run.recipe.items():
        if isinstance(values, dict):
            tables |= {f"{table}.{key}": value for key, value in values.items()}
    return tables


def table(runs: Sequence[Run]) -> str:
    """Final returns of runs on one data set as a Markdown table: mean ± sample standard deviation over seeds."""
    task = runs[0].task
    rows = [
        ("policy", "return", "normalised", "seeds"),
        ("random actions", *_score(np.array([runs[0].random_return], float), task), ""),
        ("data set mean", *_score(np.array([runs[0].dataset_return]), task), ""),
        *(
            (label, *_score(run.final, task), str(len(run.final)))
            for label, run in zip(labels(runs), runs, strict=True)
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *rest = row
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    scales = "/".join(sorted({run.scale for run in runs}))
    title = f"{runs[0].dataset}, scale {scales}: final policy, mean ± std over seeds"
    return "\n".join([title, "", line(rows[0]), line(rule), *(line(row) for row in rows[1:])])


def curves(runs: Sequence[Run], path: Path) -> None:
    """Return against updates: one line a run (mean over seeds), shaded from its worst to its best seed.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for label, run in zip(labels(runs), runs, strict=True):
        (line,) = axes.plot(run.updates, run.returns.mean(1), marker="o", markersize=3, label=label)
        axes.fill_between(run.updates, run.returns.min(1), run.returns.max(1), color=line.get_color(), alpha=0.2, lw=0)
    axes.axhline(runs[0].dataset_return, color="0.35", ls="--", lw=1, label="data set mean")
    if runs[0].random_return is not None:
        axes.axhline(runs[0].random_return, color="0.65", ls=":", lw=1, label="random actions")
    axes.set(xlabel="updates", ylabel="team return", title=runs[0].dataset)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="best")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def _score(returns: np.ndarray, task: Task | None) -> tuple[str, str]:
    """Return and normalised score; the latter is empty where there are no references, both where nobody could play."""
    if np.isnan(returns).any():
        return "", ""
    normalized = None if task is None else np.array([task.normalized(value) for value in returns])
    return _figures(returns), "" if normalized is None else _figures(normalized)


def _figures(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"
