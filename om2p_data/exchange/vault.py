"""Flashbax vaults, the format of OG-MARL (github.com/instadeepai/og-marl), read without Flashbax and JAX.

A vault is a folder `<name>.vlt/<uid>` of TensorStore arrays (zarr in OCDBT), (1, T, N, ...) each, of which the first
`vault_index` steps are filled: `observations`, `actions`, `rewards`, `terminals`, `truncations`, maybe `infos.state`
and `infos.legals`. There are no final observations; which actions are legal is not carried over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from om2p_data.errors import UserError
from om2p_data.exchange.stacks import from_stacks
from om2p_data.exchange.transitions import Transitions

_VERSION = 1  # the part before the point; vaults of the same one are alike
_KEYS = {
    "obs": "observations",
    "actions": "actions",
    "rewards": "rewards",
    "dones": "terminals",
    "truncated": "truncations",
}
_STATE, _LEGALS = "infos.state", "infos.legals"


def read(folder: Path) -> tuple[Transitions, list[str]]:
    """Transitions from a vault.

    Args:
        folder: `<name>.vlt/<uid>`, or `<name>.vlt` where it holds one vault.

    Returns:
        The transitions, and in words what was left out.

    Raises:
        UserError: TensorStore is not installed, the folder is no vault or holds several, an array is missing, of
            another shape, or holds NaN.
    """
    folder = _find(folder)
    names = _names(folder)
    missing = [key for key in _KEYS.values() if key not in names]
    if missing:
        raise UserError(f"{folder} has no array {missing[0]!r}; it holds: {', '.join(sorted(names))}")
    steps = int(_result(_open(folder, "vault_index").read(), folder, "vault_index")[0])
    if steps < 1:
        raise UserError(f"{folder} is empty")
    keys = _KEYS | ({"state": _STATE} if _STATE in names else {})
    arrays = {name: (f"{folder}: array {key!r}", _load(folder, key, steps)) for name, key in keys.items()}
    if not arrays["truncated"][1].any():  # then time limits may stand among the terminals
        del arrays["truncated"]
    choices, notes = None, []
    if _LEGALS in names:
        choices = int(_open(folder, f"{_LEGALS}.").shape[-1])
        notes.append("which actions are legal is left out")
    return from_stacks(arrays, choices), notes


def _find(folder: Path) -> Path:
    if (folder / "metadata.json").is_file():
        return folder
    vaults = sorted(path.parent for path in folder.glob("*/metadata.json"))
    if not vaults:
        raise UserError(f"{folder} is not a vault: there is no metadata.json")
    if len(vaults) > 1:
        raise UserError(f"{folder} holds several vaults: give one of {', '.join(str(vault) for vault in vaults)}")
    return vaults[0]


def _names(folder: Path) -> list[str]:
    """Names of a vault's arrays, nested ones with points."""

    def flat(tree: dict[str, Any], prefix: str) -> list[str]:
        names = []
        for name, node in tree.items():
            names += flat(node, f"{prefix}{name}.") if isinstance(node, dict) else [prefix + name]
        return names

    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if int(metadata["version"]) != _VERSION:
            raise UserError(f"{path} has version {metadata['version']}: only vaults of version {_VERSION} are read")
        return flat(metadata["structure_shape"], "")
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the metadata of a vault") from error


def _load(folder: Path, name: str, steps: int) -> np.ndarray:
    array = _open(folder, f"{name}.")
    if array.ndim < 3 or array.shape[0] != 1 or array.shape[1] < steps:
        raise UserError(f"{folder}: array {name!r} has shape {array.shape}; (1, {steps} steps, agents, ...) is needed")
    return _result(array[0, :steps].read(), folder, name)


def _open(folder: Path, name: str) -> Any:
    try:
        import tensorstore
    except ImportError:
        raise UserError('reading vaults needs TensorStore: pip install "om2p[vault]"') from None
    store = {"driver": "ocdbt", "base": f"file://{folder.resolve()}/", "path": name}
    return _result(tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True), folder, name)


def _result(future: Any, folder: Path, name: str) -> Any:
    try:
        return future.result()
    except (ValueError, OSError) as error:
        what = str(error).partition("[")[0]  # what follows repeats the whole specification
        raise UserError(f"{folder}: array {name.rstrip('.')!r} cannot be read: {what}") from error
