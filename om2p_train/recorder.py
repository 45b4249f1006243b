"""What a run measures, on its way into tables and loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from om2p_data.errors import UserError
from om2p_train.config import TrainRecipe
from om2p_train.loggers import Logger
from om2p_train.run_folder import EVALUATIONS_FILE, METRICS_FILE, Table


class Recorder:
    """Tables of losses and returns, and those who look on.

    Args:
        folder: the run's.
        seeds, agents: the S and N in whose order numbers come.
        sizes: bytes of the tables that are kept; left out: a new run.
        loggers: who looks on.

    Raises:
        UserError: a table is shorter than that.
        OSError: a table cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        agents: Sequence[str],
        sizes: Mapping[str, int] | None,
        loggers: Iterable[Logger],
    ):
        self._seeds = seeds
        self._learners = [(seed, agent) for seed in seeds for agent in agents]
        sizes = sizes or {}
        self._metrics, self._evaluations = (
            Table(folder / name, sizes.get(name, 0)) for name in (METRICS_FILE, EVALUATIONS_FILE)
        )
        self._loggers = list(loggers)

    def losses(self, update: int, losses: Mapping[str, Tensor], recipe: TrainRecipe) -> None:
        """Losses by name, [S * N].

        Raises:
            UserError: one is not finite.
        """
        values = torch.stack(list(losses.values()), -1).cpu().numpy()  # [S * N, losses]: one read
        if not np.isfinite(values).all():
            learner, column = np.argwhere(~np.isfinite(values))[0]
            raise UserError(_diverged(list(losses)[column], self._learners[learner], update, recipe))
        self._metrics.write(
            ["update", "seed", "agent", *losses],
            (
                [update, *learner, *(f"{value:.6g}" for value in row)]
                for learner, row in zip(self._learners, values, strict=True)
            ),
        )
        means = values.mean(0)
        self._log({f"loss/{name}": float(mean) for name, mean in zip(losses, means, strict=True)}, update)

    def returns(self, update: int, returns: np.ndarray) -> None:
        """Team returns of evaluation episodes, [S, episodes]."""
        self._evaluations.write(
            ["update", "seed", "episode", "return"],
            (
                [update, seed, episode, f"{value:.6g}"]
                for seed, row in zip(self._seeds, returns, strict=True)
                for episode, value in enumerate(row)
            ),
        )
        means = zip(self._seeds, returns.mean(1), strict=True)
        self._log({f"return/seed{seed}": float(mean) for seed, mean in means}, update)

    def sizes(self) -> dict[str, int]:
        """Bytes of the tables that are on the disk by now."""
        return {METRICS_FILE: self._metrics.size(), EVALUATIONS_FILE: self._evaluations.size()}

    def close(self, *, finished: bool) -> None:
        for logger in self._loggers:
            logger.close(finished=finished)
        self._metrics.close()
        self._evaluations.close()

    def _log(self, values: dict[str, float], update: int) -> None:
        for logger in self._loggers:
            logger.log(values, update)


def _diverged(loss: str, learner: tuple[int, str], update: int, recipe: TrainRecipe) -> str:
    keys = ["optimizer.learning_rate"]
    if recipe.optimizer.critic_learning_rate is not None:
        keys.append("optimizer.critic_learning_rate")
    if "eta" in type(recipe.options).model_fields:
        keys.append("options.eta")
    seed, agent = learner
    where = f"{loss} of seed {seed}, {agent}, is not finite at update {update}"
    return f"{where}: the run has diverged; lower {' or '.join(keys)}"
