"""Readers of other people's trainers get the very values of our data sets, without any code of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from om2p_data import dataset

from . import test_any_team
from .test_validation import CN_ID, HOPPER_ID, write_random

# From TorchRL 0.11 to at least 0.14.1 its reader hands out zeros for every local Minari data set, so the last version
# before is the one to compare with. It runs in a process of its own, since importing it changes torch's settings.
READ_WITH_TORCHRL = """
import sys
import numpy as np
from torchrl.data.datasets import MinariExperienceReplay

dataset_id, folder, out = sys.argv[1:]
replay = MinariExperienceReplay(dataset_id, batch_size=1, root=folder, load_from_local_minari=True)
everything = replay[:].flatten_keys("/")
np.savez(out, **{key: value.numpy() for key, value in everything.items()})
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def read_with_torchrl(dataset_id: str, folder: Path) -> dict[str, np.ndarray]:
    out = folder / "read.npz"
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ_WITH_TORCHRL, dataset_id, str(folder / "torchrl"), str(out)],
        env=os.environ | {"RL_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    with np.load(out) as arrays:
        return dict(arrays)


def write_a_mixed_team(dataset_id: str, transitions: int, root: Path) -> None:
    assert dataset_id == test_any_team.ID
    test_any_team.write(test_any_team.episodes([transitions - 7, 3, 4]), root=root)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="TorchRL 0.10 has no builds for Python 3.14")
@pytest.mark.parametrize(
    ("dataset_id", "write"),
    [(CN_ID, write_random), (HOPPER_ID, write_random), (test_any_team.ID, write_a_mixed_team)],
)
def test_torchrl_reads_every_value(dataset_id: str, write, root: Path, tmp_path: Path) -> None:
    write(dataset_id, 60, root)
    loaded = dataset.load(dataset_id)
    episodes, spec = loaded.episodes, loaded.environment.spec
    found = read_with_torchrl(dataset_id, tmp_path)
    now, after = episodes.obs_index, episodes.obs_index + 1
    for index, agent in enumerate(spec.agents):
        seen = episodes.obs[:, index, : spec.obs_dims[index]]
        np.testing.assert_array_equal(found[f"observation/{agent}"], seen[now], strict=True)
        np.testing.assert_array_equal(found[f"next/observation/{agent}"], seen[after], strict=True)
        done = episodes.actions[:, index, : spec.act_dims[index]]
        expected = done.argmax(axis=1) if spec.discrete[index] else done
        np.testing.assert_array_equal(found[f"action/{agent}"], expected, strict=True)
    np.testing.assert_array_equal(found["next/reward"][:, 0], episodes.team_rewards, strict=True)
    np.testing.assert_array_equal(found["next/terminated"][:, 0], episodes.team_terminated, strict=True)
    np.testing.assert_array_equal(found["next/truncated"][:, 0], episodes.team_truncated, strict=True)
    np.testing.assert_array_equal(found["next/info/agent_rewards"], episodes.rewards, strict=True)
    np.testing.assert_array_equal(found["episode"], np.repeat(np.arange(len(episodes.lengths)), episodes.lengths))
    if episodes.state is not None:
        np.testing.assert_array_equal(found["info/state"], episodes.state[now], strict=True)
