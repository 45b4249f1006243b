"""Validation: data sets as they should be pass every check, and every kind of damage is found by the check for it."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from typer.testing import CliRunner

from cli.data import app
from om2p_data import dataset
from om2p_data.behavior.policy import UniformPolicy
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs import find, make
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.rollout import rollout
from om2p_data.spec import EnvironmentCard
from om2p_data.validation import Severity, run, validate

from . import test_any_team

CN_ID, PP_ID = "om2p/cooperative-navigation/random-v0", "om2p/predator-prey/random-v0"
HOPPER_ID = "om2p/hopper-3x1/random-v0"
FOREIGN_ID = "lab/game/test-v3"


def write_random(dataset_id: str, transitions: int, root: Path) -> None:
    task = find(dataset_id.split("/")[1])
    env = make(task.name, 4)
    episodes = rollout(UniformPolicy(task), env, transitions, seed=0)
    returns = episodes.team_returns
    policy = BehaviorPolicy("random", "uniform", 0, 0, "", returns.mean(), returns.std(), len(returns))
    collection = {"prey": env.prey_identity}
    dataset.write(
        dataset_id,
        episodes,
        environment=EnvironmentCard.of(task),
        policies=[policy],
        collection=collection,
        root=root,
        progress=False,
    )


def write_foreign(lengths: list[int] = [5, 8, 3]) -> None:  # noqa: B006 (only read)
    """A team's data set as Minari itself writes it."""
    seen = spaces.Dict({name: spaces.Box(-np.inf, np.inf, (4,), np.float32) for name in ("left", "right")})
    done = spaces.Dict({"left": spaces.Box(-1, 1, (2,), np.float32), "right": spaces.Discrete(3)})
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations={name: rng.standard_normal((length + 1, 4), dtype=np.float32) for name in seen},
            actions={
                "left": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                "right": rng.integers(0, 3, length),
            },
            rewards=rng.standard_normal(length),
            terminations=np.arange(length) == length - 1,
            truncations=np.zeros(length, bool),
            infos={},
        )
        for length in lengths
    ]
    with warnings.catch_warnings(action="ignore"):  # Minari asks for an author and more
        minari.create_dataset_from_buffers(FOREIGN_ID, buffers, observation_space=seen, action_space=done)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Healthy data sets of uniform actions in three worlds."""
    folder = tmp_path_factory.mktemp("healthy")
    write_random(CN_ID, 300, folder)
    write_random(PP_ID, 300, folder)
    write_random(HOPPER_ID, 150, folder)
    return folder


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Path) -> Path:
    folder = tmp_path / "datasets"
    shutil.copytree(written, folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder


def problems(dataset_id: str = CN_ID, **settings: Any) -> dict[str, Severity]:
    return {
        finding.check: finding.severity
        for finding in validate(dataset_id, **settings)
        if finding.severity is not Severity.OK
    }


# Healthy data sets


@pytest.mark.parametrize("dataset_id", [CN_ID, PP_ID, HOPPER_ID])
def test_our_data_pass_every_check(dataset_id: str) -> None:
    findings = {finding.check: finding for finding in validate(dataset_id)}
    assert all(finding.severity is Severity.OK for finding in findings.values()), findings
    assert set(findings) >= {
        "folder", "metadata", "file", "episodes", "loading", "shapes", "types", "attributes", "columns", "finite",
        "bounds", "ends", "duplicates", "final obs", "rewards", "physics", "counts", "statistics",
    }  # fmt: skip
    assert " transitions replayed, all" in findings["physics"].message
    assert ("views" in findings) == (dataset_id != HOPPER_ID)


@pytest.mark.parametrize("leaves_at", [None, 1])
def test_data_of_other_teams_pass(leaves_at: int | None) -> None:
    data = test_any_team.episodes([4, 3, 9], leaves_at=leaves_at)
    data.actions[:] = data.actions.clip(0.0, 1.0)
    returns = data.team_returns
    policy = BehaviorPolicy("hand", "scripted", 0, 3, "", returns.mean(), returns.std(), 3)
    test_any_team.write(data, policies=[policy])
    assert problems(test_any_team.ID) == {}
    checks = [finding.check for finding in validate(test_any_team.ID)]
    assert ("agents" in checks) == (leaves_at is not None)
    assert "physics" not in checks


def test_data_written_by_minari_pass() -> None:
    write_foreign()
    assert problems(FOREIGN_ID) == {}


# Damage. Every function spoils the file or its neighbours in one way.

Damage = Callable[[Path], object]


def in_file(change: Callable[[h5py.File], object]) -> Damage:
    """Damage inside the HDF5 file."""

    def apply(folder: Path) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
            change(file)

    return apply


def put(path: str, index: Any, value: Any) -> Damage:
    def change(file: h5py.File) -> None:
        array = file[path]
        assert isinstance(array, h5py.Dataset)
        array[index] = value

    return in_file(change)


def replaced(path: str, make_new: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def change(file: h5py.File) -> None:
        array = make_new(np.asarray(file[path]))
        del file[path]
        file[path] = array

    return in_file(change)


def metadata(**changes: Any) -> Damage:
    """Keys changed, or with None removed."""

    def apply(folder: Path) -> None:
        path = folder / "data" / "metadata.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return apply


def attribute(name: str, value: Any) -> Damage:
    return in_file(lambda file: file["episode_2"].attrs.modify(name, value))


def cut_short(folder: Path) -> None:
    path = folder / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:-5_000])


def move_a_landmark(file: h5py.File) -> None:
    for agent in range(3):
        file[f"episode_1/observations/agent_{agent}"][12:, 4] += 0.5  # pyright: ignore


def repeat_final(file: h5py.File) -> None:
    for episode in file:
        for agent in range(3):
            array = file[f"{episode}/observations/agent_{agent}"]
            array[-1] = array[-2]  # pyright: ignore


def go_on(file: h5py.File) -> None:
    for agent in range(3):
        file[f"episode_4/observations/agent_{agent}"][0] = file[f"episode_3/observations/agent_{agent}"][-1]  # pyright: ignore


def copy_an_episode(file: h5py.File) -> None:
    del file["episode_5"]
    file.copy("episode_1", "episode_5")
    file["episode_5"].attrs["id"] = 5


@pytest.mark.parametrize(
    ("damage", "check", "message", "place"),
    [
        (cut_short, "file", "cannot be opened", None),
        (lambda f: (f / "data" / "main_data.hdf5").write_bytes(b""), "file", "cannot be opened", None),
        (lambda f: (f / "data" / "main_data.hdf5").unlink(), "file", "No such file", None),
        (lambda f: (f / "data" / "metadata.json").unlink(), "metadata", "cannot be read", None),
        (lambda f: (f / "data" / "metadata.json").write_bytes(b'{"a'), "metadata", "damaged", None),
        (lambda f: (f / "data" / "metadata.json").write_bytes(b"[]"), "metadata", "not a table", None),
        (metadata(dataset_size=None), "metadata", "dataset_size is missing, which stops Minari", None),
        (metadata(total_steps="300"), "metadata", "total_steps is '300'", None),
        (metadata(content_hash=None), "metadata", "content_hash is missing", None),
        (metadata(om2p_schema="7"), "metadata", "om2p_schema is '7'", None),
        (metadata(action_space="{"), "metadata", "action_space cannot be understood", None),
        (metadata(dataset_id="om2p/world/random-v0"), "metadata", "belongs to 'om2p/world/random-v0'", None),
        (metadata(behaviour_policies=[]), "metadata", "behaviour_policies have 0 episodes", None),
        (metadata(total_steps=299), "counts", "total_steps is 299, the file holds 300", None),
        (metadata(dataset_size=99.0), "counts", "dataset_size is 99 MB", None),
        (metadata(statistics={"team_return": {}}), "statistics", "statistics.team_return.mean is not", None),
        (metadata(content_hash="0" * 64), "loading", "was changed after it was written", None),
        (in_file(lambda f: f.move("episode_3", "episode_30")), "episodes", "an episode is missing", "episode_3"),
        (in_file(lambda f: f.create_group("notes")), "episodes", "a group is none of an episode", "notes"),
        (
            in_file(lambda f: f.__delitem__("episode_3/observations/agent_1")),
            "shapes", "observations/agent_1 is missing", "episode_3",
        ),
        (in_file(lambda f: f.__delitem__("episode_3/rewards")), "shapes", "an episode cannot be read", "episode_3"),
        (
            replaced("episode_3/observations/agent_1", lambda a: a[:-1]),
            "shapes", "has 25 rows instead of one more than steps", "episode_3",
        ),
        (replaced("episode_0/actions/agent_0", lambda a: a[:, :1]), "shapes", r"has rows of \(1,\)", "episode_0"),
        (replaced("episode_0/rewards", lambda a: a[:0]), "shapes", "an episode has no steps", "episode_0"),
        (
            in_file(lambda f: [f.move(f"{e}/actions/agent_0", f"{e}/actions/other") for e in f]),
            "shapes", "actions/agent_0 is missing", "episode_0",
        ),
        (replaced("episode_0/actions/agent_0", lambda a: a.astype(int)), "types", "agent_0 is int64", "episode_0"),
        (
            put("episode_2/observations/agent_0", (7, 1), np.nan),
            "finite", "observations/agent_0 holds NaN", "episode_2/observations/agent_0, row 7",
        ),
        (put("episode_2/rewards", 4, np.inf), "finite", "rewards holds NaN or inf", "episode_2/rewards, row 4"),
        (
            put("episode_4/actions/agent_2", (3, 0), 1.5),
            "bounds", "actions/agent_2 lie outside the declared space, by 0.5", "episode_4/actions/agent_2, row 3",
        ),
        (put("episode_1/truncations", 9, True), "ends", "before the last step", "row 9"),
        (put("episode_1/truncations", 24, False), "ends", "no flag marks the last step", "episode_1"),
        (metadata(multi_agent={"horizon": 24}), "ends", "longer than", None),
        (put("episode_6/rewards", 2, 77.0), "rewards", "is not the mean of the agents'", "episode_6/rewards, row 2"),
        (put("episode_6/infos/agent_rewards", 0, 1.0), "rewards", "first row of infos/agent_rewards", "episode_6"),
        (attribute("return_team", 1.25), "rewards", "return_team is not the sum", "episode_2: 1.25"),
        (attribute("total_steps", 24), "attributes", "total_steps is not that of the data", "episode_2: 24"),
        (attribute("id", 3), "attributes", "id is not that of the data", "episode_2: 3"),
        (attribute("policy", "other"), "attributes", "policy is none of the metadata's", "episode_2: other"),
        (in_file(copy_an_episode), "duplicates", "the same as an earlier one", "episode_5 as episode_1"),
        (in_file(repeat_final), "final obs", "the true final one was not stored", None),
        (in_file(go_on), "final obs", "begins where the one before it ended", "episode_4"),
        (put("episode_1/observations/agent_2", (3, 10), 9.0), "views", "do not see the same world", "episode_1"),
        (in_file(move_a_landmark), "views", "a landmark moves", "episode_1"),
        (put("episode_1/actions/agent_0", (3, 0), 0.123), "physics", "lead elsewhere", "episode_1/actions, row 3"),
        (put("episode_1/observations/agent_0", (3, 2), 0.123), "columns", "agent_0 differs", "episodes 0 to"),
        (lambda f: f.with_name(".random-v0.partial").mkdir(), "folder", "left by a program", "random-v0.partial"),
        (lambda f: (f.parent / "namespace_metadata.json").unlink(), "folder", "Minari uploads nothing", "cooperative"),
    ],
)  # fmt: skip
def test_damage_is_found(damage: Damage, check: str, message: str, place: str | None, root: Path) -> None:
    damage(root / CN_ID)
    found = [finding for finding in validate(CN_ID) if finding.check == check]
    matching = [finding for finding in found if re.search(message, finding.message)]
    assert matching, found
    assert matching[0].severity is not Severity.OK
    assert matching[0].count >= 1
    if place is not None:
        assert place in (matching[0].place or "")
    assert all("\n" not in str(finding) for finding in found)


@pytest.mark.parametrize(
    ("dataset_id", "damage"),
    [
        (PP_ID, put("episode_1/actions/predator_1", (3, 0), 0.123)),
        (HOPPER_ID, put("episode_1/actions/agent_1", (3, 0), 0.123)),
        (HOPPER_ID, put("episode_1/rewards", 3, 0.123)),
    ],
)
def test_worlds_that_move_otherwise_are_found(dataset_id: str, damage: Damage, root: Path) -> None:
    damage(root / dataset_id)
    assert problems(dataset_id)["physics"] is Severity.ERROR


def test_another_prey_is_not_replayed(root: Path) -> None:
    metadata(collection={"prey": "another-1"})(root / PP_ID)
    found = {finding.check: finding.message for finding in validate(PP_ID)}
    assert found["physics"].startswith("not replayed: collected with prey another-1")


def test_agents_that_leave_are_checked(root: Path) -> None:
    policy = BehaviorPolicy("hand", "scripted", 0, 3, "", 0.0, 1.0, 2)
    test_any_team.write(test_any_team.episodes([4, 6], leaves_at=1), policies=[policy])
    folder = root / test_any_team.ID
    damages = {
        "is not zero for an agent that has ended": put("episode_1/observations/tractor", 5, 3.0),
        "an agent ends twice": put("episode_1/infos/agent_terminations", (4, 1), True),
        "agent_mask is not what the flags say": put("episode_0/infos/agent_mask", (1, 2), False),
    }
    for message, damage in damages.items():
        damage(folder)
        assert any(message in finding.message for finding in validate(test_any_team.ID)), message


def test_other_peoples_damage(root: Path) -> None:
    write_foreign()
    folder = root / FOREIGN_ID
    put("episode_1/terminations", 7, False)(folder)
    assert problems(FOREIGN_ID)["ends"] is Severity.WARNING  # loading takes it for cut off
    put("episode_1/actions/right", 2, 3)(folder)
    assert problems(FOREIGN_ID)["bounds"] is Severity.ERROR


def test_a_changed_column_is_found(root: Path) -> None:
    path = root / CN_ID / "flat" / "rewards.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert problems()["loading"] is Severity.ERROR
    assert any("flat columns were changed" in finding.message for finding in validate(CN_ID))


def test_a_sample_is_read_where_columns_hold_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_SAMPLE", 3)  # of 12: the first, the last, and one in between
    put("episode_2/rewards", 4, 77.0)(root / CN_ID)
    assert problems() == {}
    assert problems(full=True).keys() >= {"columns", "rewards"}
    put("episode_11/rewards", 4, 77.0)(root / CN_ID)
    assert problems() == {"columns": Severity.ERROR}  # the values that were looked at are the columns'


def test_random_damage_never_ends_in_a_traceback(root: Path) -> None:
    path = root / CN_ID / "data" / "main_data.hdf5"
    healthy = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(12):
        damaged = bytearray(healthy)
        for place in rng.integers(0, len(damaged), 40):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        assert problems()


# The command


def test_exit_codes_say_what_was_found(root: Path) -> None:
    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["validate", *arguments])
        if isinstance(result.exception, UserError):
            return 2, str(result.exception)
        return result.exit_code, result.output

    code, shown = invoke(CN_ID)
    assert code == 0
    assert shown.splitlines()[0] == CN_ID
    assert shown.splitlines()[-1] == "  0 errors, 0 warnings"
    put("episode_1/rewards", 3, 77.0)(root / CN_ID)
    code, shown = invoke("--all")
    assert code == 1
    assert [line for line in shown.splitlines() if not line.startswith(" ")] == sorted([CN_ID, PP_ID, HOPPER_ID])
    assert "the team's reward is not the mean of the agents' (episode_1/rewards, row 3)" in shown
    code, shown = invoke(CN_ID, "--json")
    assert code == 1
    found = {finding["check"]: finding for finding in json.loads(shown)[CN_ID]}
    assert found["rewards"]["severity"] == "error"
    assert found["rewards"]["place"] == "episode_1/rewards, row 3"
    assert invoke() == (2, "name the data sets to check, or give --all (and not both)")
    assert invoke(CN_ID, "--all")[0] == 2
    code, shown = invoke("om2p/cooperative-navigation/randm-v0")
    assert code == 2
    assert f"did you mean '{CN_ID}'" in shown


def test_episodes_stay_as_they_were(root: Path) -> None:
    """Validation changes nothing."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for dataset_id in (CN_ID, PP_ID, HOPPER_ID):
        validate(dataset_id, full=True)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert isinstance(dataset.load(CN_ID).episodes, Episodes)
