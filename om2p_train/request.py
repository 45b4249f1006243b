"""What a run was asked for; what was not said comes from the run that is to go on, or from the defaults."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from om2p_data import dataset as datasets
from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_data.tiers import Tier
from om2p_train import config, run_folder
from om2p_train.config import Scale, TrainRecipe

_ALGORITHM, _SEEDS, _DEVICE = "om2p", (0, 1, 2), "cpu"


class Plan(NamedTuple):
    """All that `train` needs."""

    dataset: Dataset
    recipe: TrainRecipe
    seeds: list[int]
    folder: Path
    device: str
    threads: int | None


@dataclass(frozen=True)
class Request:
    """Words of a user; None where nothing was said.

    Attributes:
        dataset: id; root: folder of data sets.
        algorithm: name of a bundled recipe or path of a TOML file; settings: overrides of its keys.
        out: run folder; by default runs/<task>/<tier>/<recipe>.
        resume: go on with the run that is there.
    """

    dataset: str | None = None
    root: Path | None = None
    algorithm: str | None = None
    settings: tuple[str, ...] = ()
    scale: Scale | None = None
    seeds: list[int] | None = None
    device: str | None = None
    threads: int | None = None
    out: Path | None = None
    resume: bool = False

    def plan(self) -> Plan:
        """Load the data set and resolve the recipe.

        Raises:
            UserError: no data set is named, or one of the things named is missing or wrong.
        """
        name = config.name_of(self.algorithm or _ALGORITHM)
        known = self._known(self.out) if self.out is not None else {}
        dataset_id = self.dataset or known.get("dataset")
        if dataset_id is None:
            if self.resume and self.out is not None:
                raise UserError(f"{self.out} holds no run to go on with; to start one there, add --dataset")
            raise UserError("--dataset is missing (`om2p-data list` shows the data sets), or --resume --out RUN_FOLDER")
        data = datasets.load(dataset_id, self.root)
        task = data.environment.name
        folder = self.out or Path("runs", task, data.metadata["tier"], name)
        known = known or self._known(folder)
        return Plan(
            data,
            self._recipe(folder, task, data.metadata["tier"], known),
            self.seeds or known.get("seeds", list(_SEEDS)),
            folder,
            self.device or known.get("device", _DEVICE),
            self.threads or known.get("threads"),
        )

    def resume_command(self, folder: Path) -> str:
        """What goes on with the run in a folder."""
        words = ["om2p-train", "run", "--resume", "--out", str(folder)]
        if self.root is not None:
            words += ["--root", str(self.root)]
        return shlex.join(words)

    def _known(self, folder: Path) -> dict[str, Any]:
        """Facts of the run that is to go on; none if one is to begin."""
        return run_folder.read_facts(folder) if self.resume and run_folder.holds_run(folder) else {}

    def _recipe(self, folder: Path, task: str, tier_name: str, known: dict[str, Any]) -> TrainRecipe:
        tier = next((entry for entry in Tier if entry.value == tier_name), None)
        if self.algorithm is None and known:
            return config.load(folder / run_folder.RECIPE_FILE, task, tier, self.scale, self.settings)
        scale = self.scale or (Scale(known["scale"]) if known else None)
        return config.load(self.algorithm or _ALGORITHM, task, tier, scale, self.settings)
