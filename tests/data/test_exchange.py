"""Data sets from and to folders of .npy files, as OMAR published them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.data import app
from om2p_data import dataset, exchange
from om2p_data.envs.registry import find
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.exchange import Dones, Format

from .test_dataset import CN, CN_EPISODES, CN_ID, HC_EPISODES, HC_ID, random_episodes, write

NEW, CN_NEW, HC_NEW = "om2p/somewhere/other-v0", "om2p/cooperative-navigation/other-v0", "om2p/halfcheetah-2x3/other-v0"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def assert_carried(found: Episodes, expected: Episodes) -> None:
    """Equal but for what these formats cannot say; the hash holds it all."""
    same = dataclasses.replace(found, policy=expected.policy, seed=expected.seed)
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(same.arrays()[name], array, err_msg=name, strict=True)
    assert same.content_hash() == expected.content_hash()


def import_npy(folder: Path, dataset_id: str, **options: Any) -> exchange.Imported:
    return exchange.import_data(Format.NPY, folder, dataset_id, overwrite=True, progress=False, **options)


# There and back


@pytest.mark.parametrize(
    ("dataset_id", "episodes", "new"), [(CN_ID, CN_EPISODES, CN_NEW), (HC_ID, HC_EPISODES, HC_NEW)]
)
def test_export_and_import(dataset_id: str, episodes: Episodes, new: str, tmp_path: Path) -> None:
    write(dataset_id, episodes)
    folder = tmp_path / "exported"
    exchange.export_data(dataset_id, Format.NPY, folder, progress=False)
    made = import_npy(folder, new)
    assert_carried(made.episodes, episodes)
    loaded = dataset.load(new)
    assert_carried(loaded.episodes, episodes)
    assert set(loaded.episodes.seed) == {-1}
    (policy,) = loaded.policies
    assert (policy.name, policy.episodes) == ("imported", episodes.num_episodes)
    assert minari.load_dataset(new).total_steps == episodes.num_transitions
    assert loaded.metadata["collection"]["imported"]["format"] == "npy"


def test_what_lies_in_an_exported_folder(tmp_path: Path) -> None:
    """The loader of OMAR (and of those that follow it) reads these arrays by these names."""
    write()
    exchange.export_data(CN_ID, Format.NPY, tmp_path / "x", progress=False)
    names = {f"{field}_{i}.npy" for field in ("obs", "acs", "rews", "next_obs", "dones", "truncated") for i in range(3)}
    assert {path.name for path in (tmp_path / "x").iterdir()} == names
    rows = CN_EPISODES.obs_index
    for i in range(3):
        arrays = {
            name: np.load(tmp_path / "x" / f"{name}_{i}.npy") for name in ("obs", "acs", "rews", "next_obs", "dones")
        }
        np.testing.assert_array_equal(arrays["obs"], CN_EPISODES.obs[rows, i])
        np.testing.assert_array_equal(arrays["next_obs"], CN_EPISODES.obs[rows + 1, i])
        np.testing.assert_array_equal(arrays["acs"], CN_EPISODES.actions[:, i])
        np.testing.assert_array_equal(arrays["rews"], CN_EPISODES.rewards[:, i])
        np.testing.assert_array_equal(arrays["dones"], CN_EPISODES.terminated[:, i])
    with pytest.raises(UserError, match="exists already"):
        exchange.export_data(CN_ID, Format.NPY, tmp_path / "x", progress=False)
    exchange.export_data(CN_ID, Format.NPY, tmp_path / "x", overwrite=True, progress=False)
    with pytest.raises(UserError, match="format vault can be read, not written"):
        exchange.export_data(CN_ID, Format.VAULT, tmp_path / "y", progress=False)


def test_agents_that_leave_early_come_back(tmp_path: Path) -> None:
    arrays = {name: array.copy() for name, array in CN_EPISODES.select([0, 1, 2]).arrays().items()}
    arrays["terminated"][9, 2] = True  # agent 2 leaves in step 9 of 25
    arrays["obs"][11:26, 2], arrays["actions"][10:25, 2], arrays["rewards"][10:25, 2] = 0, 0, 0
    arrays["truncated"][24, 2] = False
    episodes = Episodes.from_arrays(arrays)
    write(episodes=episodes)
    exchange.export_data(CN_ID, Format.NPY, tmp_path / "x", progress=False)
    assert_carried(import_npy(tmp_path / "x", CN_NEW).episodes, episodes)
    rewards = np.load(tmp_path / "x" / "rews_2.npy")
    rewards[15] = 1
    np.save(tmp_path / "x" / "rews_2.npy", rewards)
    with pytest.raises(UserError, match="an agent that was done before its team has a reward in transition 15"):
        import_npy(tmp_path / "x", CN_NEW)


# Folders as they were published


def published(folder: Path, episodes: Episodes, dones: np.ndarray, dtype: type = np.float64) -> Path:
    """The layout of OMAR's data sets: float64, dones as floats, nothing that names time limits."""
    folder.mkdir()
    rows = episodes.obs_index
    for i in range(episodes.obs.shape[1]):
        np.save(folder / f"obs_{i}.npy", episodes.obs[rows, i].astype(dtype))
        np.save(folder / f"next_obs_{i}.npy", episodes.obs[rows + 1, i].astype(dtype))
        np.save(folder / f"acs_{i}.npy", episodes.actions[:, i].astype(dtype))
        np.save(folder / f"rews_{i}.npy", episodes.rewards[:, i].astype(dtype))
        np.save(folder / f"dones_{i}.npy", dones.astype(dtype))
        if episodes.state is not None:
            np.save(folder / f"states_{i}.npy", episodes.state[rows].astype(dtype))
            np.save(folder / f"next_states_{i}.npy", episodes.state[rows + 1].astype(dtype))
    return folder


def cut_off(episodes: Episodes) -> Episodes:
    """All ends as time limits."""
    ended = episodes.terminated | episodes.truncated
    return dataclasses.replace(episodes, terminated=np.zeros_like(ended), truncated=ended)


def test_particle_data_without_dones(tmp_path: Path) -> None:
    episodes = cut_off(random_episodes(CN, [25] * 8))
    folder = published(tmp_path / "cn", episodes, np.zeros(200))
    for number in (3, 4):  # a scripted opponent's files beside the team's
        for field in ("obs", "acs", "rews", "next_obs", "dones"):
            np.save(folder / f"{field}_{number}.npy", np.zeros((200, 5)))
    made = import_npy(folder, CN_NEW)
    assert_carried(made.episodes, episodes)
    assert made.notes[0] == "8 episodes found: 7 where the observations break off, 1 where the data end"
    assert made.notes[1] == "0 episodes terminated, 8 were cut off"
    assert made.notes[2] == "agents 3 to 4 left out: the task has 3"
    assert import_npy(folder, CN_NEW, horizon=25).episodes.lengths.tolist() == [25] * 8
    assert dataset.load(CN_NEW).metadata["collection"]["notes"] == list(made.notes)
    with pytest.raises(UserError, match=r"--horizon 20 cuts where observations go on \(first after transition 19\)"):
        import_npy(folder, CN_NEW, horizon=20)


@pytest.mark.parametrize(
    ("dones", "terminated"),
    [(Dones.LIMIT_AT_HORIZON, [False, True, False]), (Dones.TERMINATION, [True] * 3), (Dones.LIMIT, [False] * 3)],
)
def test_what_dones_mean(dones: Dones, terminated: list[bool], tmp_path: Path) -> None:
    episodes = random_episodes(find("hc"), [1000, 400, 1000])
    ends = np.cumsum(episodes.lengths) - 1
    flags = np.zeros(2400)
    flags[ends] = 1
    made = import_npy(published(tmp_path / "hc", episodes, flags), HC_NEW, dones=dones)
    assert made.episodes.lengths.tolist() == [1000, 400, 1000]
    assert made.episodes.team_terminated[ends].tolist() == terminated
    assert made.episodes.team_truncated[ends].tolist() == [not ended for ended in terminated]
    np.testing.assert_array_equal(made.episodes.state, episodes.state)
    np.testing.assert_array_equal(made.episodes.obs, episodes.obs)
    assert made.notes[0] == "3 episodes found: 3 marked by a flag"


def test_another_task_s_data_need_no_task(tmp_path: Path) -> None:
    """Agents of different sizes, choices as indices and one-hot rows, no task of ours."""
    rng = np.random.default_rng(0)
    rows, ends = 30, [9, 14, 29]
    obs = [rng.standard_normal((rows, width)).astype(np.float32) for width in (3, 5)]
    choice = [rng.integers(0, 4, rows), rng.integers(0, 3, rows)]
    choice[0][:4] = range(4)
    for i in range(2):
        following = np.concatenate([obs[i][1:], obs[i][:1]])
        following[ends] += 1
        dones = np.isin(np.arange(rows), ends[:1])
        acs = np.eye(3, dtype=np.uint8)[choice[i]] if i else choice[i]
        arrays = {"obs": obs[i], "next_obs": following, "acs": acs, "rews": np.arange(rows), "dones": dones}
        for field, array in arrays.items():
            np.save(tmp_path / f"{field}_{i}.npy", array)
    made = import_npy(tmp_path, NEW)
    assert made.episodes.lengths.tolist() == [10, 5, 15]
    loaded = dataset.load(NEW)
    spec = loaded.environment.spec
    assert (spec.agents, spec.obs_dims, spec.act_dims) == (("agent_0", "agent_1"), (3, 5), (4, 3))
    assert (spec.discrete, loaded.task) == ((True, True), None)
    found = loaded.episodes
    np.testing.assert_array_equal(found.actions[:, 0], np.eye(4)[choice[0]])
    np.testing.assert_array_equal(found.actions[:, 1, :3], np.eye(3)[choice[1]])
    for i, width in enumerate((3, 5)):
        np.testing.assert_array_equal(found.obs[found.obs_index, i, :width], obs[i])
        assert not found.obs[:, i, width:].any()
    assert found.team_terminated.nonzero()[0].tolist() == [9]
    assert found.team_truncated.nonzero()[0].tolist() == [14, 29]
    stock = minari.load_dataset(NEW)
    np.testing.assert_array_equal(stock[0].actions["agent_0"], choice[0][:10])
    exchange.export_data(NEW, Format.NPY, tmp_path / "back", progress=False)
    assert_carried(import_npy(tmp_path / "back", NEW.replace("v0", "v1")).episodes, found)


@pytest.mark.parametrize(("largest", "bound"), [(1.0, 1.0), (1.5, np.inf)])
def test_actions_without_known_bounds(largest: float, bound: float, tmp_path: Path) -> None:
    episodes = cut_off(random_episodes(CN, [25] * 2))
    folder = published(tmp_path / "x", episodes, np.zeros(50))
    spoil(folder, "acs_1.npy", put(7, largest))
    import_npy(folder, NEW)
    space = minari.load_dataset(NEW).action_space
    for agent in ("agent_0", "agent_1"):
        assert space[agent].high.tolist() == [bound] * 2
        assert space[agent].low.tolist() == [-bound] * 2


def spoil(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(folder / name, change(np.load(folder / name)))


def put(row: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[row] = value
        return array

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "acs_1.npy").unlink(), r"acs_1\.npy is missing"),
        (lambda f: (f / "obs_2.npy").unlink(), r"holds obs_<i>\.npy of 2 agents; 3 are needed"),
        (lambda f: (f / "obs_1.npy").write_text("no"), r"obs_1\.npy cannot be read as an array"),
        (lambda f: (f / "obs_1.npy").write_bytes(b""), r"obs_1\.npy cannot be read as an array"),
        (
            lambda f: np.save(f / "obs_1.npy", np.array([{}]), allow_pickle=True),
            r"obs_1\.npy cannot be read as an array: .*Python objects",
        ),
        (lambda f: spoil(f, "obs_1.npy", put(7, np.nan)), r"obs_1\.npy holds NaN or infinity \(first in row 7\)"),
        (lambda f: spoil(f, "rews_2.npy", put(9, np.inf)), r"rews_2\.npy holds NaN or infinity \(first in row 9\)"),
        (lambda f: spoil(f, "acs_0.npy", put(3, 1e39)), r"acs_0\.npy holds NaN or infinity \(first in row 3\)"),
        (lambda f: spoil(f, "acs_1.npy", lambda a: a[:-1]), r"acs_1\.npy has 199 rows, .*observations have 200"),
        (lambda f: spoil(f, "rews_1.npy", lambda a: a.reshape(100, 2)), r"rews_1\.npy has 100 rows"),
        (
            lambda f: spoil(f, "rews_1.npy", lambda a: np.stack([a, a], 1)),
            r"rews_1\.npy has shape \(200, 2\); one number",
        ),
        (lambda f: spoil(f, "obs_1.npy", lambda a: a[..., None]), r"obs_1\.npy has shape \(200, 18, 1\)"),
        (lambda f: spoil(f, "obs_0.npy", lambda a: a[:0]), r"obs_0\.npy has shape \(0, 18\)"),
        (lambda f: spoil(f, "obs_1.npy", lambda a: a.astype("U8")), r"obs_1\.npy holds <U8, not numbers"),
        (lambda f: spoil(f, "dones_1.npy", put(4, 0.5)), r"dones_1\.npy holds 0\.5 \(row 4\); a flag is 0 or 1"),
        (lambda f: spoil(f, "acs_0.npy", lambda a: a.astype(int)), r"acs_0\.npy holds whole numbers .* not one-hot"),
        (
            lambda f: spoil(f, "obs_1.npy", lambda a: a[:, :-1]),
            r"next_obs_1\.npy is \(200, 18\), obs_1\.npy \(200, 17\)",
        ),
        (
            lambda f: [spoil(f, f"{name}_1.npy", lambda a: a[:, :-1]) for name in ("obs", "next_obs")],
            r"is not of cooperative-navigation: its agents' sizes of observations are \(18, 17, 18\) instead of",
        ),
        (lambda f: spoil(f, "acs_0.npy", lambda a: a[:, 0]), r"sizes of actions are \(1, 2, 2\) instead of"),
        (
            lambda f: [spoil(f, f"acs_{i}.npy", lambda a: np.eye(2, dtype=int)[a[:, 0].astype(int)]) for i in range(3)],
            r"discrete actions are \(True, True, True\) instead of",
        ),
    ],
)
def test_damaged_folders_are_named(damage: Callable[[Path], Any], message: str, tmp_path: Path, root: Path) -> None:
    folder = published(tmp_path / "cn", random_episodes(CN, [25] * 8), np.zeros(200))
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        import_npy(folder, CN_NEW)
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("*.hdf5"))


# The command line


def test_commands(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    write()
    run("export", CN_ID, "--format", "npy", "--out", str(tmp_path / "x"), "--quiet")
    output = run("import", "npy", str(tmp_path / "x"), "--id", CN_NEW, "--env", "cn", "--quiet")
    assert f"{CN_NEW}: {CN_EPISODES.num_transitions} transitions in 7 episodes" in output
    assert "7 episodes found: 7 marked by a flag" in output
    assert_carried(dataset.load(CN_NEW).episodes, CN_EPISODES)
    for names, message in (
        (("import", "csv"), "unknown format 'csv'"),
        (("import", "npy", "--dones", "x"), "dones 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            run(*names, str(tmp_path), "--id", NEW)
