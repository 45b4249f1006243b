"""Data sets from and to the formats of others."""

from __future__ import annotations

import dataclasses
import enum
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from om2p_data import dataset
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs.registry import TASKS, find
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError, unknown
from om2p_data.exchange import npy, omiga, vault
from om2p_data.exchange.transitions import Dones, Transitions, cut
from om2p_data.provenance import commit
from om2p_data.spec import EnvironmentCard, TeamSpec
from om2p_data.storage import DatasetId, parse_id

__all__ = ["Dones", "Format", "Imported", "export_data", "import_data"]


class Format(enum.Enum):
    """How others store data; the modules of the same names describe the layouts.

    NPY: a folder of .npy files for each field and agent (OMAR). The one that can be written, too.
    OMIGA: an HDF5 file of five arrays.
    VAULT: a folder that Flashbax wrote (OG-MARL).
    """

    NPY = "npy"
    OMIGA = "omiga"
    VAULT = "vault"

    @classmethod
    def parse(cls, name: str) -> Format:
        """The format of that name.

        Raises:
            UserError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            raise unknown("format", name, [entry.value for entry in cls]) from None


@dataclass(frozen=True)
class Imported:
    """A data set that was just written, and in words what was found, decided and left out on the way."""

    folder: Path
    episodes: Episodes
    notes: tuple[str, ...]


def import_data(
    source: Format,
    path: str | os.PathLike[str],
    dataset_id: str,
    *,
    env: str | None = None,
    horizon: int | None = None,
    dones: Dones = Dones.LIMIT_AT_HORIZON,
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Imported:
    """Write the data of another format as a Minari data set.

    Where episodes end, and what becomes of final observations that were not stored, says `transitions.cut`. Values are
    stored as float32. Nothing in these formats names behaviour policies or seeds: all episodes get one policy
    "imported", and the seed -1.

    Args:
        source: the format.
        path: the file or folder.
        dataset_id: `<namespace>/<task>/<tier>-v<N>` of the new data set.
        env: task that the data were collected in; by default the one that the id names, if it is one of ours. Its
            agents, sizes and time limit must be those of the data.
        horizon: steps of an episode, where the data do not show its end; by default only the task's is known.
        dones: what done flags mean.
        overwrite: replace a data set of that id.
        root: folder of all data sets; by default Minari's.
        progress: show bars on a terminal.

    Raises:
        UserError: what the format's reader, `transitions.cut` and `dataset.write` refuse; nothing is left behind.
    """
    path, parsed = Path(path), parse_id(dataset_id)
    dataset.ensure_free(dataset_id, overwrite, root)
    if horizon is not None and horizon < 1:
        raise UserError(f"the horizon must be 1 or more, not {horizon}")
    task = find(env) if env is not None else TASKS.get(parsed.task)
    card = None if task is None else EnvironmentCard.of(task)
    notes: list[str] = []
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if source is Format.NPY:
        flat, notes = npy.read(path, None if card is None else card.spec.num_agents)
    elif source is Format.OMIGA:
        flat = omiga.read(path)
    else:
        flat, notes = vault.read(path)
    if card is None:
        card = _card(flat, parsed, source, horizon)
    else:
        _check_sizes(flat, card, path)
        if card.spec.state_dim is None and flat.state is not None:
            flat = dataclasses.replace(flat, state=None, next_state=None)
            notes.append(f"states left out: they follow from the observations of {card.name}")
    limit = horizon if horizon is not None else card.horizon
    found = cut(flat, horizon=limit, every=horizon, dones=dones)
    episodes, notes = found.episodes, [*found.notes, *notes]
    returns = episodes.team_returns
    policy = BehaviorPolicy(
        "imported", "unknown", 0, 0, "", float(returns.mean()), float(returns.std()), episodes.num_episodes
    )
    folder = dataset.write(
        dataset_id,
        episodes,
        environment=card,
        policies=[policy],
        collection={
            "imported": {"format": source.value, "source": path.name, "dones": dones.value, "horizon": horizon},
            "notes": notes,
            "commit": commit(),
        },
        overwrite=overwrite,
        root=root,
        progress=progress,
    )
    return Imported(folder, episodes, tuple(notes))


def export_data(
    dataset_id: str,
    target: Format,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> None:
    """Write a data set in another format, from which `import_data` brings back the same arrays.

    Lost are what the format has no place for: seeds, behaviour policies and metadata.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`.
        target: the format; NPY alone can be written.
        out: the new folder.
        overwrite: replace a folder of that name.
        root: folder of all data sets; by default Minari's.
        progress: show a bar on a terminal.

    Raises:
        UserError: a format that cannot be written, what `dataset.load` refuses, or a folder that exists or cannot be
            written; nothing is left behind.
    """
    if target is not Format.NPY:
        raise UserError(f"format {target.value} can be read, not written; valid: {Format.NPY.value}")
    loaded = dataset.load(dataset_id, root)
    npy.write(Path(out), loaded.episodes, loaded.environment.spec, overwrite=overwrite, progress=progress)


def _check_sizes(flat: Transitions, card: EnvironmentCard, path: Path) -> None:
    spec = card.spec
    found = {
        "sizes of observations": tuple(array.shape[1] for array in flat.obs),
        "sizes of actions": tuple(array.shape[1] for array in flat.actions),
        "discrete actions": flat.discrete,
    }
    expected = zip(found.items(), (spec.obs_dims, spec.act_dims, spec.discrete), strict=True)
    for (what, sizes), needed in expected:
        if sizes != needed:
            raise UserError(f"{path} is not of {card.name}: its agents' {what} are {sizes} instead of {needed}")
    if spec.state_dim is not None and (flat.state is None or flat.state.shape[1] != spec.state_dim):
        states = "no states" if flat.state is None else f"states of {flat.state.shape[1]}"
        raise UserError(f"{path} is not of {card.name}: it has {states} instead of {spec.state_dim}")


def _card(flat: Transitions, parsed: DatasetId, source: Format, horizon: int | None) -> EnvironmentCard:
    """What the data themselves tell of a task that is none of ours."""
    widths = tuple(array.shape[1] for array in flat.actions)
    # The usual bounds unless they cannot be; those of the data would differ from tier to tier.
    open_ended = any(np.abs(array).max() > 1.0 for array in flat.actions)
    unbounded = tuple((float("inf"),) * width for width in widths)
    spec = TeamSpec(
        agents=tuple(f"agent_{index}" for index in range(len(flat.obs))),
        obs_dims=tuple(array.shape[1] for array in flat.obs),
        act_dims=widths,
        discrete=flat.discrete,
        state_dim=None if flat.state is None else flat.state.shape[1],
        action_low=tuple(tuple(-bound for bound in own) for own in unbounded) if open_ended else None,
        action_high=unbounded if open_ended else None,
    )
    return EnvironmentCard(
        name=parsed.task,
        spec=spec,
        summary=f"{parsed.task}, imported from {source.value}",
        env_spec=None,
        reference_random=None,
        reference_expert=None,
        horizon=horizon,
    )
