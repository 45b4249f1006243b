"""Where a run's curves are shown besides its own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from om2p_data.errors import UserError

EVENTS, WANDB_FILES = "tensorboard", "wandb"


class Logger(Protocol):
    """Takes the numbers of a run, by name."""

    def log(self, values: Mapping[str, float], update: int) -> None:
        """Numbers that belong to an update; an update can have several calls, and none comes after a later one's."""
        ...

    def close(self, *, finished: bool) -> None:
        """Nothing more comes; `finished` says whether the run is complete."""
        ...


class TensorBoard:
    """Event files in the run's folder.

    Args:
        folder: the run's.
        update: that the run goes on from; what was logged after it is shown no more.
    """

    def __init__(self, folder: Path, update: int):
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(folder / EVENTS, purge_step=update + 1)

    def log(self, values: Mapping[str, float], update: int) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, update)

    def close(self, *, finished: bool) -> None:
        del finished  # event files have no end
        self._events.close()


class WandB:
    """A run of Weights & Biases, which one id in the run's facts keeps together over interruptions.

    Args:
        folder: the run's; its local files go below.
        run: id and project.
        name: shown in the project.
        facts: shown as the run's configuration.

    Raises:
        UserError: W&B refuses (no login, no network).
    """

    def __init__(self, folder: Path, run: Mapping[str, str], name: str, facts: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports] (an extra)

        try:
            self._run = wandb.init(
                id=run["id"], project=run["project"], name=name, config=dict(facts), dir=str(folder), resume="allow"
            )
        except wandb.Error as error:
            raise UserError(f"Weights & Biases refuses the run: {error}; WANDB_MODE=offline needs no account") from None

    def log(self, values: Mapping[str, float], update: int) -> None:
        # After a kill, the updates since the checkpoint come again with the same numbers; W&B leaves those out itself.
        self._run.log(dict(values), step=update)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


@dataclass(frozen=True)
class Loggers:
    """Which ones a run has.

    Attributes:
        tensorboard: None: as the run began, with it if it is installed.
        wandb: None: if the run began with it.
        wandb_project: where a run that begins is shown.
    """

    tensorboard: bool | None = None
    wandb: bool | None = None
    wandb_project: str = "om2p"

    def choose(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Facts of the run about its loggers: `tensorboard`, yes or no; `wandb`, id and project of its run or None.

        Args:
            before: the run's facts, if it goes on.

        Raises:
            UserError: a logger that is asked for is not installed.
        """
        begun = before or {"tensorboard": True, "wandb": None}
        if self.tensorboard and not _installed("tensorboard"):
            raise UserError("TensorBoard is not installed: pip install 'om2p[tensorboard]'")
        tensorboard = begun["tensorboard"] and _installed("tensorboard")
        if self.tensorboard is not None:
            tensorboard = self.tensorboard
        if not (begun["wandb"] is not None if self.wandb is None else self.wandb):
            return {"tensorboard": tensorboard, "wandb": None}
        if not _installed("wandb"):
            raise UserError("Weights & Biases is not installed: pip install 'om2p[wandb]', or leave it with --no-wandb")
        fresh = {"id": uuid.uuid4().hex[:8], "project": self.wandb_project}
        return {"tensorboard": tensorboard, "wandb": begun["wandb"] or fresh}


def open_loggers(folder: Path, name: str, facts: Mapping[str, Any], update: int) -> list[Logger]:
    """What shows a run's numbers.

    Args:
        folder: the run's.
        name: shown.
        facts: of the run; what `Loggers.choose` said is among them.
        update: that it goes on from.

    Raises:
        UserError: W&B refuses.
    """
    found: list[Logger] = []
    if facts["tensorboard"]:
        found.append(TensorBoard(folder, update))
    if facts["wandb"] is not None:
        found.append(WandB(folder, facts["wandb"], name, facts))
    return found


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
