"""Data from OMIGA's files and OG-MARL's vaults; the vaults here were written by Flashbax 0.1.3."""

from __future__ import annotations

import builtins
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from om2p_data import dataset, exchange
from om2p_data.errors import UserError
from om2p_data.exchange import Dones, Format

NEW = "om2p/somewhere/other-v0"
VAULTS = Path(__file__).parents[1] / "golden" / "vaults-flashbax-0.1.3.tar.gz"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


# OMIGA's files


def omiga_file(path: Path, change: Callable[[dict[str, Any]], object] = lambda arrays: None) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ends = np.cumsum([6, 4, 8]) - 1
    state = rng.standard_normal((18, 1, 5)).repeat(2, axis=1)
    arrays: dict[str, Any] = {
        "o": rng.standard_normal((18, 2, 3)),
        "s": state,
        "a": rng.uniform(-1, 1, (18, 2, 2)),
        "r": rng.standard_normal((18, 1)),
        "d": np.isin(np.arange(18), ends)[:, None],
    }
    change(arrays)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            if isinstance(array, h5py.ExternalLink):
                file[key] = array
            else:
                file.create_dataset(key, data=array)
    return arrays


def test_omiga(tmp_path: Path) -> None:
    arrays = omiga_file(tmp_path / "x.hdf5")
    exchange.import_data(Format.OMIGA, tmp_path / "x.hdf5", NEW, horizon=8, progress=False)
    found = dataset.load(NEW).episodes
    assert found.lengths.tolist() == [6, 4, 7]  # the last is a time limit, and loses its last transition
    assert found.team_terminated.nonzero()[0].tolist() == [5, 9]
    assert found.team_truncated.nonzero()[0].tolist() == [16]
    np.testing.assert_array_equal(found.obs[found.obs_index], arrays["o"][:17].astype(np.float32))
    np.testing.assert_array_equal(found.obs[-1], arrays["o"][17].astype(np.float32))
    np.testing.assert_array_equal(found.actions, arrays["a"][:17].astype(np.float32))
    np.testing.assert_array_equal(found.rewards, arrays["r"][:17].repeat(2, 1).astype(np.float32))
    assert found.state is not None
    np.testing.assert_array_equal(found.state[found.obs_index], arrays["s"][:17, 0].astype(np.float32))
    assert found.obs[6].tolist() == found.obs[5].tolist()


def test_omiga_states_that_differ_are_kept(tmp_path: Path) -> None:
    arrays = omiga_file(tmp_path / "x.hdf5", lambda a: a["s"].__setitem__((3, 1), 9.0))
    exchange.import_data(Format.OMIGA, tmp_path / "x.hdf5", NEW, dones=Dones.TERMINATION, progress=False)
    found = dataset.load(NEW).episodes
    assert found.state is not None
    np.testing.assert_array_equal(found.state[3], arrays["s"][3].reshape(-1).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("r"), r"has no array 'r'; o, s, a, r, d are needed"),
        (lambda a: a.update(o=a["o"][:, 0]), r"array 'o' has shape \(18, 3\)"),
        (lambda a: a.update(a=a["a"][:, :1]), r"array 'a' has shape \(18, 1, 2\); \(transitions, 2 agents"),
        (lambda a: a.update(a=a["a"][:-1]), "array 'a' has 17 rows"),
        (lambda a: a["r"].__setitem__(5, np.nan), r"array 'r' holds NaN or infinity \(first in row 5\)"),
        (lambda a: a.update(d=a["d"] * 2), r"array 'd' holds 2\.0 \(row 5\)"),
        (lambda a: a.update(s=h5py.ExternalLink("/etc/passwd", "/s")), "has no array 's'"),
    ],
)
def test_damaged_omiga_files(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    omiga_file(tmp_path / "x.hdf5", change)
    with pytest.raises(UserError, match=message) as caught:
        exchange.import_data(Format.OMIGA, tmp_path / "x.hdf5", NEW, progress=False)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "x.hdf5") in str(caught.value)


def test_files_that_are_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "x.hdf5").write_text("no")
    with pytest.raises(UserError, match=r"x\.hdf5 cannot be read as HDF5"):
        exchange.import_data(Format.OMIGA, tmp_path / "x.hdf5", NEW, progress=False)
    with pytest.raises(UserError, match="does not exist"):
        exchange.import_data(Format.OMIGA, tmp_path / "absent.hdf5", NEW, progress=False)


# Vaults


@pytest.fixture
def vaults(tmp_path: Path) -> Path:
    with tarfile.open(VAULTS) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / "small.vlt"


def written_vault(seed: int, discrete: bool) -> dict[str, np.ndarray]:
    """What was handed to Flashbax: four episodes of two agents, of which the second and the last were cut off."""
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.standard_normal((33, 2, 3)).astype(np.float32),
        "actions": rng.integers(0, 4, (33, 2)) if discrete else rng.uniform(-1, 1, (33, 2, 2)).astype(np.float32),
        "rewards": np.repeat(rng.standard_normal((33, 1)), 2, 1).astype(np.float32),
        "state": rng.standard_normal((33, 5)).astype(np.float32),
    }


@pytest.mark.parametrize(("uid", "seed", "discrete"), [("Good", 0, True), ("Poor", 1, False)])
def test_vaults_of_flashbax(uid: str, seed: int, discrete: bool, vaults: Path) -> None:
    pytest.importorskip("tensorstore")
    made = exchange.import_data(Format.VAULT, vaults / uid, NEW, progress=False)
    assert made.notes[0] == "4 episodes found: 4 marked by a flag"  # nothing behind the last written step
    expected, found = written_vault(seed, discrete), dataset.load(NEW).episodes
    assert found.lengths.tolist() == [7, 11, 5, 8]
    assert found.team_terminated.nonzero()[0].tolist() == [6, 22]
    assert found.team_truncated.nonzero()[0].tolist() == [17, 30]
    kept = np.setdiff1d(np.arange(33), [18, 32])
    np.testing.assert_array_equal(found.obs[found.obs_index], expected["obs"][kept])
    np.testing.assert_array_equal(found.obs[[7, 19, 25, 34]], expected["obs"][[6, 18, 23, 32]])
    actions = np.eye(5, dtype=np.float32)[expected["actions"]] if discrete else expected["actions"]
    np.testing.assert_array_equal(found.actions, actions[kept])
    np.testing.assert_array_equal(found.rewards, expected["rewards"][kept])
    assert found.state is not None
    np.testing.assert_array_equal(found.state[found.obs_index], expected["state"][kept])
    assert ("which actions are legal is left out" in made.notes) == discrete
    assert dataset.load(NEW).environment.spec.discrete == (discrete,) * 2


@pytest.mark.parametrize(
    ("options", "terminated", "lengths"),
    [
        ({"horizon": 12}, [6, 22, 31], [7, 11, 5, 9]),
        ({}, [6, 18, 23, 32], [7, 12, 5, 9]),
        ({"dones": Dones.LIMIT}, [], [6, 11, 4, 8]),
    ],
)
def test_vaults_that_mark_time_limits_as_terminals(
    options: dict[str, Any], terminated: list[int], lengths: list[int], vaults: Path
) -> None:
    pytest.importorskip("tensorstore")
    made = exchange.import_data(Format.VAULT, vaults / "Unmarked", NEW, progress=False, **options)
    assert made.episodes.lengths.tolist() == lengths
    assert made.episodes.team_terminated.nonzero()[0].tolist() == terminated


def test_vaults_that_are_refused(vaults: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            exchange.import_data(Format.VAULT, path, NEW, progress=False)
        assert "\n" not in str(caught.value)

    refused(vaults, r"holds several vaults: give one of .*Good, .*Poor, .*Unmarked")
    refused(vaults.parent, "is not a vault")
    plain = builtins.__import__
    with monkeypatch.context() as patch:

        def without(name: str, *arguments: Any, **options: Any) -> Any:
            if name == "tensorstore":
                raise ImportError(name)
            return plain(name, *arguments, **options)

        patch.setattr(builtins, "__import__", without)
        refused(vaults / "Good", r'needs TensorStore: pip install "om2p\[vault\]"')
    pytest.importorskip("tensorstore")
    path = vaults / "Good" / "metadata.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": 2.0}))
    refused(vaults / "Good", "only vaults of version 1 are read")
    path.write_text("[1]")
    refused(vaults / "Good", "is not the metadata of a vault")
    path.write_text(json.dumps(content | {"structure_shape": {"observations": "", "actions": ""}}))
    refused(vaults / "Good", "has no array 'rewards'; it holds: actions, observations")
    path.write_text(json.dumps(content))
    (vaults / "Good" / "manifest.ocdbt").write_bytes(b"no")
    refused(vaults / "Good", "array 'vault_index' cannot be read")
