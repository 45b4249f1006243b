"""Data of teams that are none of ours: different sizes, discrete actions, early leavers, other people's sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from om2p_data import dataset, rebuild
from om2p_data.dataset import BehaviorPolicy
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.spec import EnvironmentCard, TeamSpec

ID = "lab/harvest/mixed-v0"
SPEC = TeamSpec(
    agents=("scout", "tractor", "agent_10"),
    obs_dims=(2, 5, 3),
    act_dims=(4, 2, 1),
    discrete=(True, False, False),
    state_dim=6,
    action_low=((0.0,) * 4, (-2.0, 0.0), (-1.0,)),
    action_high=((1.0,) * 4, (2.0, 1.0), (1.0,)),
)
CARD = EnvironmentCard("harvest", SPEC, "three machines harvest a field", None, None, 12.5, None)
POLICY = BehaviorPolicy("hand", "scripted", 0, 3, "", 0.0, 1.0, 3)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def episodes(lengths: list[int], *, leaves_at: int | None = None) -> Episodes:
    """Random data of SPEC; agent 1 terminates early in every episode where `leaves_at` says so."""
    rng = np.random.default_rng(sum(lengths))
    steps, count = sum(lengths), len(lengths)
    obs = rng.standard_normal((steps + count, 3, 5)).astype(np.float32)
    actions = rng.standard_normal((steps, 3, 4)).astype(np.float32)
    obs[:, SPEC.padding[0]] = 0
    actions[:, SPEC.padding[1]] = 0
    actions[:, 0] = np.eye(4)[rng.integers(0, 4, steps)]
    rewards = rng.standard_normal((steps, 3)).astype(np.float32)
    terminated = np.zeros((steps, 3), bool)
    ends = np.cumsum(lengths) - 1
    terminated[ends] = True
    if leaves_at is not None:
        for first, last, episode in zip(ends - lengths + 1, ends, range(count), strict=True):
            gone = slice(first + leaves_at + 1, last + 1)
            terminated[first + leaves_at, 1] = True
            terminated[gone, 1] = False
            actions[gone, 1] = rewards[gone, 1] = 0
            obs[first + episode + leaves_at + 2 : last + episode + 2, 1] = 0
    return Episodes(
        obs=obs,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=np.zeros_like(terminated),
        state=rng.standard_normal((steps + count, 6)).astype(np.float32),
        lengths=np.array(lengths),
        policy=np.zeros(count, np.int32),
        seed=np.arange(count),
    )


def write(data: Episodes, **changes) -> Path:
    settings = {"environment": CARD, "policies": [POLICY], "collection": {}, "progress": False} | changes
    return dataset.write(ID, data, **settings)


@pytest.mark.parametrize("leaves_at", [None, 1])
def test_a_team_of_different_agents_comes_back_as_it_was(leaves_at: int | None) -> None:
    data = episodes([4, 3, 9], leaves_at=leaves_at)
    folder = write(data)
    shutil.rmtree(folder / "flat")
    found = dataset.load(ID)
    for name, array in data.arrays().items():
        np.testing.assert_array_equal(found.episodes.arrays()[name], array, err_msg=name, strict=True)
    assert found.task is None
    assert found.environment == CARD


def test_stock_minari_sees_every_agent_at_its_own_size() -> None:
    data = episodes([4, 3, 9])
    write(data)
    stock = minari.load_dataset(ID)
    assert stock.observation_space["tractor"].shape == (5,)
    assert stock.action_space["scout"] == spaces.Discrete(4)
    assert stock.action_space["tractor"].high.tolist() == [2.0, 1.0]
    episode = stock[1]
    assert episode.observations["scout"].shape == (4, 2)
    np.testing.assert_array_equal(episode.actions["scout"], data.actions[4:7, 0].argmax(1))
    np.testing.assert_array_equal(episode.actions["agent_10"], data.actions[4:7, 2, :1])
    assert episode.actions["scout"].dtype == np.int64


def test_columns_made_by_processes_equal_those_that_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "_ENOUGH_FOR_PROCESSES", 5)
    monkeypatch.setattr(rebuild, "available_threads", lambda: 3)
    data = episodes([3, 4] * 8)
    folder = write(data, policies=[BehaviorPolicy("hand", "scripted", 0, 3, "", 0.0, 1.0, 16)])
    before = {path.name: path.read_bytes() for path in (folder / "flat").glob("*.npy")}
    shutil.rmtree(folder / "flat")
    found = dataset.load(ID)
    assert {path.name: path.read_bytes() for path in (folder / "flat").glob("*.npy")} == before
    assert found.episodes.content_hash() == data.content_hash()


def test_damage_found_by_a_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "_ENOUGH_FOR_PROCESSES", 1)
    monkeypatch.setattr(rebuild, "available_threads", lambda: 2)
    folder = write(episodes([3, 4, 5]))
    shutil.rmtree(folder / "flat")
    import h5py

    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_2/infos/state"]
    with pytest.raises(UserError, match=r"main_data\.hdf5 is damaged") as caught:
        dataset.load(ID)
    assert "\n" not in str(caught.value)
    assert not (folder / "flat").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.obs.__setitem__((0, 0, 4), 1.0), "obs must be zero where an agent is smaller"),
        (lambda d: d.actions.__setitem__((0, 0), 0.0), "actions of 'scout', which are discrete, must be one-hot"),
        (lambda d: d.rewards.__setitem__((2, 1), np.nan), r"rewards holds NaN or infinity \(first in row 2\)"),
    ],
)
def test_data_that_do_not_fit_the_team_are_refused(spoil, message: str, root: Path) -> None:
    data = episodes([4, 3, 9])
    spoil(data)
    with pytest.raises(UserError, match=message):
        write(data)
    assert not list(root.rglob("*.hdf5"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agents": ("a/b", "c", "d")}, "agent name 'a/b' cannot stand"),
        ({"agents": ("c", "c", "d")}, "different names"),
        ({"obs_dims": (1, 2)}, "obs_dims has 2 entries for 3 agents"),
        ({"act_dims": (0, 2, 1)}, "must see and do something"),
    ],
)
def test_impossible_teams_are_refused(changes: dict, message: str) -> None:
    fields = {name: getattr(SPEC, name) for name in ("agents", "obs_dims", "act_dims", "discrete", "state_dim")}
    with pytest.raises(UserError, match=message):
        TeamSpec(**(fields | changes))


class Foreign(gymnasium.Env):
    """Somebody's two-agent environment behind Gymnasium's interface."""

    observation_space = spaces.Dict({"left": spaces.Box(-1, 1, (2, 2)), "right": spaces.Discrete(3)})
    action_space = spaces.Dict({"left": spaces.Box(-1, 1, (2,)), "right": spaces.Discrete(5, start=1)})


def stacked(rows: list):
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def stock_dataset(dataset_id: str, env: gymnasium.Env, lengths: tuple[int, ...] = (3, 5)) -> list[EpisodeBuffer]:
    """A data set that stock Minari writes, from samples of the spaces."""
    env.observation_space.seed(0)
    env.action_space.seed(0)
    buffers = []
    for index, length in enumerate(lengths):
        seen = [env.observation_space.sample() for _ in range(length + 1)]
        done = [env.action_space.sample() for _ in range(length)]
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations=stacked(seen),
                actions=stacked(done),
                rewards=list(np.arange(length) + 0.5),
                terminations=[False] * length,
                truncations=[False] * (length - 1) + [index == 0],
            )
        )
    minari.create_dataset_from_buffers(
        dataset_id, buffers, observation_space=env.observation_space, action_space=env.action_space
    )
    return buffers


def test_a_set_that_our_code_did_not_write() -> None:
    buffers = stock_dataset("lab/twins/hand-v1", Foreign())
    found = dataset.load("lab/twins/hand-v1")
    spec, data = found.environment.spec, found.episodes
    assert (spec.agents, spec.obs_dims, spec.act_dims) == (("left", "right"), (4, 3), (2, 5))
    assert spec.discrete == (False, True)
    assert data.lengths.tolist() == [3, 5]
    np.testing.assert_array_equal(data.obs[:4, 0], buffers[0].observations["left"].reshape(4, 4))
    np.testing.assert_array_equal(data.obs[:4, 1, :3].argmax(1), buffers[0].observations["right"])
    np.testing.assert_array_equal(data.actions[3:, 1].argmax(1) + 1, buffers[1].actions["right"])
    np.testing.assert_array_equal(data.actions[:, 0, :2][3:], buffers[1].actions["left"])
    assert data.team_rewards.tolist() == [0.5, 1.5, 2.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    assert data.truncated[:, 0].nonzero()[0].tolist() == [2, 7]  # the second ends without a flag: cut off
    assert [summary.id for summary in dataset.list_datasets()] == ["lab/twins/hand-v1"]


class Single(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))


class Images(gymnasium.Env):
    observation_space = spaces.Dict({"eye": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    action_space = spaces.Dict({"eye": spaces.Discrete(2)})


@pytest.mark.parametrize(
    ("env", "message"),
    [(Single(), "is no multi-agent data set"), (Images(), r"'eye' observes images \(4, 4, 3\): only vectors")],
)
def test_sets_that_are_no_teams_vectors_are_refused_in_one_line(env: gymnasium.Env, message: str) -> None:
    stock_dataset("lab/other/hand-v0", env)
    with pytest.raises(UserError, match=message) as caught:
        dataset.load("lab/other/hand-v0")
    assert "\n" not in str(caught.value)
    assert dataset.list_datasets() == []


def test_damage_in_a_foreign_set_is_one_line(root: Path) -> None:
    stock_dataset("lab/twins/hand-v1", Foreign())
    file = root / "lab/twins/hand-v1/data/metadata.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"action_space": content["observation_space"]}))
    with pytest.raises(UserError, match=r"main_data\.hdf5") as caught:
        dataset.load("lab/twins/hand-v1")
    assert "\n" not in str(caught.value)
