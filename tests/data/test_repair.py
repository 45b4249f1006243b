"""Repair of what killed programs leave: stock Minari is really killed, then the whole library must work again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from minari import cli as minari_cli
from typer.testing import CliRunner

from cli.data import app
from om2p_data import dataset, repair, storage
from om2p_data.errors import UserError
from om2p_data.repair import QUARANTINE, Action, Verb
from om2p_data.validation import Severity, validate

from .test_dataset import CN_EPISODES, CN_ID, assert_same, edit_metadata, write

GAME = "lab/game/played-v0"
# A stock creation of 40 episodes, and what is to happen to it.
STOCK = """
    import os, signal, sys
    import numpy as np
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer
    from minari.dataset import minari_storage

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def episode(number, length=6):
        rng = np.random.default_rng(number)
        return EpisodeBuffer(
            observations={name: rng.standard_normal((length + 1, 3), dtype=np.float32) for name in seen},
            actions={"one": rng.uniform(-1, 1, (length, 2)).astype(np.float32), "two": rng.integers(0, 4, length)},
            rewards=rng.standard_normal(length),
            terminations=np.arange(length) == length - 1,
            truncations=np.zeros(length, bool),
            infos={},
        )

    seen = spaces.Dict({name: spaces.Box(-np.inf, np.inf, (3,), np.float32) for name in ("one", "two")})
    done = spaces.Dict({"one": spaces.Box(-1, 1, (2,), np.float32), "two": spaces.Discrete(4)})

    def create(count=40):
        episodes = (episode(number) for number in range(count))
        spaces_of = {"observation_space": seen, "action_space": done}
        return minari.create_dataset_from_buffers("lab/game/played-v0", episodes, **spaces_of)
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(repair, "_QUIET_SECONDS", -1.0)
    return tmp_path / "datasets"


def killed(program: str) -> None:
    """Run a program that is killed, or kills itself, in the middle of stock Minari's work."""
    code = textwrap.dedent(STOCK) + textwrap.dedent(program)
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr


def stock_lists() -> list[str] | None:
    """Ids that `minari list` shows, None where it fails."""
    result = CliRunner().invoke(minari_cli.app, ["list", "local"])
    return None if result.exit_code else [name for name in (GAME, CN_ID) if name in result.output]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def repaired(root: Path) -> list[Action]:
    """Repair, after a dry run that must announce the same and touch nothing; a second repair finds nothing to do."""
    before = contents(root)
    announced = repair.repair(dry_run=True)
    assert contents(root) == before
    done = repair.repair()
    assert done == announced
    assert [action for action in repair.repair() if action.verb is not Verb.LEAVE] == []
    assert stock_lists() is not None
    return done


def check_game(episodes: int) -> None:
    """The stock set holds its first episodes, for Minari and for us."""
    stock = minari.load_dataset(GAME)
    assert (stock.total_episodes, stock.total_steps) == (episodes, 6 * episodes)
    for number, episode in enumerate(stock):
        expected = np.random.default_rng(number).standard_normal((7, 3), dtype=np.float32)
        assert episode.id == number
        np.testing.assert_array_equal(episode.observations["one"], expected)
    assert [finding for finding in validate(GAME) if finding.severity is not Severity.OK] == []
    assert dataset.load(GAME).episodes.num_episodes == episodes
    assert GAME in (stock_lists() or [])


# Minari's own, killed for real


def test_a_creation_killed_while_it_writes_stops_the_whole_library(root: Path) -> None:
    write()
    ours = contents(root)
    killed("""
        from minari.dataset._storages import hdf5_storage
        add, calls = hdf5_storage._add_episode_to_group, []

        def slow(*arguments, **options):
            calls.append(1)
            if len(calls) > 4 * 30:  # an episode and its three groups
                arguments[1].file.flush()
                die()
            add(*arguments, **options)

        hdf5_storage._add_episode_to_group = slow
        create()
    """)
    assert stock_lists() is None, "stock Minari has learned to live with this: is the repair still needed?"
    half = (root / GAME / "data" / "main_data.hdf5").read_bytes()
    (action,) = repaired(root)
    assert action.verb is Verb.REBUILD
    assert action.why.startswith("30 episodes, 180 steps are whole")
    check_game(30)
    assert contents(root).items() >= ours.items()
    assert (root / QUARANTINE / "lab--game--played-v0.0" / "data" / "main_data.hdf5").read_bytes() == half
    repair.repair(delete=True)
    assert not list((root / QUARANTINE).iterdir())


def test_a_creation_killed_by_the_clock(root: Path) -> None:
    code = textwrap.dedent(STOCK) + "create(2000)"
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    file = root / GAME / "data" / "main_data.hdf5"
    deadline = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size > 300_000):
        assert child.poll() is None, "the writer ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    write()
    assert stock_lists() is None
    assert [(action.verb, action.place) for action in repaired(root)] == [(Verb.PUT_ASIDE, GAME)]
    assert stock_lists() == [CN_ID]


def test_a_creation_killed_before_it_counts_is_finished(root: Path) -> None:
    killed("""
        update, calls = minari_storage.MinariStorage.update_metadata, []

        def last(self, metadata):
            calls.append(1)
            die() if len(calls) == 2 else update(self, metadata)

        minari_storage.MinariStorage.update_metadata = last
        create()
    """)
    assert stock_lists() is None
    (action,) = repaired(root)
    assert action == Action(Verb.CORRECT, f"{GAME}/data/metadata.json", "now 40 episodes, 240 steps")
    check_game(40)
    assert minari.load_dataset(GAME).action_space["two"].n == 4


def test_metadata_killed_while_they_are_written_are_made_anew(root: Path) -> None:
    killed("""
        dump, calls = minari_storage.json.dump, []

        def last(*arguments, **options):
            calls.append(1)
            die() if len(calls) == 5 else dump(*arguments, **options)  # the first two are the namespaces'

        minari_storage.json.dump = last
        create()
    """)
    assert (root / GAME / "data" / "metadata.json").read_bytes() == b""
    (action,) = repaired(root)
    assert action.verb is Verb.REBUILD
    check_game(40)
    stock = minari.load_dataset(GAME)
    assert stock.action_space["two"].n == 4  # the least that holds the data
    assert stock.observation_space["one"].shape == (3,)
    assert list(root.glob(f"{QUARANTINE}/*/metadata.json"))


def test_episodes_added_by_a_killed_program_count(root: Path) -> None:
    killed("""
        storage, calls = create().storage, []
        update = storage.update_metadata

        def last(metadata):
            calls.append(1)
            die() if len(calls) == 3 else update(metadata)

        storage.update_metadata = last
        for number in range(40, 50):
            storage.update_episodes([episode(number)])
    """)
    assert minari.load_dataset(GAME).total_episodes == 42
    (action,) = repaired(root)
    assert action.why == "now 43 episodes, 258 steps"
    check_game(43)


def test_an_incomplete_episode_is_left_out(root: Path) -> None:
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(STOCK) + "create()"], check=True)
    assert child.returncode == 0
    file = root / GAME / "data" / "main_data.hdf5"
    with h5py.File(file, "r+") as opened:
        del opened["episode_39/truncations"], opened["episode_38/actions/two"]
    before = file.read_bytes()
    (action,) = repaired(root)
    assert (action.verb, action.place) == (Verb.REBUILD, GAME)
    check_game(38)
    assert (root / QUARANTINE / "lab--game--played-v0.0" / "data" / "main_data.hdf5").read_bytes() == before


def test_episodes_behind_a_broken_one_move_up(root: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(STOCK) + "create()"], check=True)
    with h5py.File(root / GAME / "data" / "main_data.hdf5", "r+") as opened:
        del opened["episode_7/rewards"]
        edit_metadata(root / GAME, total_episodes=39)
    repaired(root)
    stock = minari.load_dataset(GAME)
    assert (stock.total_episodes, stock.total_steps) == (39, 234)
    expected = np.random.default_rng(8).standard_normal((7, 3), dtype=np.float32)
    np.testing.assert_array_equal(stock[7].observations["one"], expected)
    assert [finding for finding in validate(GAME) if finding.severity is not Severity.OK] == []


def test_every_episode_of_a_named_set_is_looked_at(root: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(STOCK) + "create()"], check=True)
    edit_metadata(root / GAME, env_spec="{")
    with h5py.File(root / GAME / "data" / "main_data.hdf5", "r+") as opened:
        del opened["episode_7/rewards"]
    assert repair.repair() == []  # no killed program leaves this
    (action,) = repair.repair(GAME)
    assert action.why.startswith("39 episodes, 234 steps are whole")
    assert minari.load_dataset(GAME).env_spec is None
    assert [finding for finding in validate(GAME) if finding.severity is not Severity.OK] == []


def test_a_set_at_work_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    file = root / CN_ID / "data" / "main_data.hdf5"
    program = f"import h5py; f = h5py.File({str(file)!r}, 'r+'); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert repair.repair() == [Action(Verb.LEAVE, CN_ID, "another program is writing it")]
    finally:
        child.communicate(b"\n")
    shutil.rmtree(root / CN_ID / "flat")
    file.write_bytes(b"half")
    monkeypatch.setattr(repair, "_QUIET_SECONDS", 10.0)
    (action,) = repair.repair()
    assert action.verb is Verb.LEAVE
    assert "may be at work" in action.why
    os.utime(file, (time.time() - 60,) * 2)
    os.utime(root / CN_ID / "data" / "metadata.json", (time.time() - 60,) * 2)
    assert [action.verb for action in repair.repair()] == [Verb.PUT_ASIDE]


# Ours


def test_our_leftovers_are_removed(root: Path) -> None:
    folder = write()
    beside = [folder.with_name(name) for name in (".expert-v0.partial", f".{folder.name}.replaced")]
    for hidden in (*beside, folder / ".flat.partial"):
        (hidden / "data").mkdir(parents=True)
        (hidden / "data" / "main_data.hdf5").write_bytes(b"half")
    before = contents(folder / "data")
    assert [action.verb for action in repaired(root)] == [Verb.REMOVE] * 3
    assert not list(root.rglob(".*"))
    assert contents(folder / "data") == before


def test_a_swap_killed_halfway_is_undone(root: Path) -> None:
    folder = write()
    folder.rename(folder.with_name(f".{folder.name}.replaced"))
    folder.with_name(f".{folder.name}.partial").mkdir()
    assert [action.verb for action in repaired(root)] == [Verb.BRING_BACK, Verb.REMOVE]
    assert_same(dataset.load(CN_ID).episodes, CN_EPISODES)


def test_a_writer_that_is_alive_is_left_alone(root: Path) -> None:
    folder = root / CN_ID
    folder.parent.mkdir(parents=True)
    with storage.replacing(folder) as partial:
        (partial / "data").mkdir()
        (action,) = repair.repair()
        assert action.verb is Verb.LEAVE
        assert partial.exists()
    assert (folder / "data").is_dir()


def test_a_damaged_file_is_written_anew_from_the_columns(root: Path) -> None:
    folder = write()
    file = folder / "data" / "main_data.hdf5"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9_000])
    (action,) = repaired(root)
    assert (action.verb, action.place) == (Verb.REBUILD, CN_ID)
    assert file.stat().st_size == len(whole)
    assert next((root / QUARANTINE).rglob("main_data.hdf5")).read_bytes() == whole[:-9_000]
    shutil.rmtree(folder / "flat")
    assert_same(dataset.load(CN_ID).episodes, CN_EPISODES)


def test_a_damaged_file_without_columns_is_put_aside(root: Path) -> None:
    folder = write()
    shutil.rmtree(folder / "flat")
    (folder / "data" / "main_data.hdf5").write_bytes(b"")
    assert [(action.verb, action.place) for action in repaired(root)] == [(Verb.PUT_ASIDE, CN_ID)]
    assert not folder.exists()
    write()  # the name is free again
    assert dataset.load(CN_ID).episodes.num_episodes == 7


def test_our_metadata_lost_leave_a_plain_minari_set(root: Path) -> None:
    folder = write()
    (folder / "data" / "metadata.json").write_bytes(b"{")
    (action,) = repaired(root)
    assert action.verb is Verb.REBUILD
    found = dataset.load(CN_ID)
    assert found.episodes.num_transitions == CN_EPISODES.num_transitions
    np.testing.assert_array_equal(found.episodes.rewards, CN_EPISODES.rewards)
    np.testing.assert_array_equal(found.episodes.obs, CN_EPISODES.obs)


def test_changed_columns_are_put_aside(root: Path) -> None:
    folder = write()
    column = folder / "flat" / "rewards.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\x01")
    assert [(action.verb, action.place) for action in repaired(root)] == [(Verb.PUT_ASIDE, f"{CN_ID}/flat")]
    assert_same(dataset.load(CN_ID).episodes, CN_EPISODES)


def test_small_things_are_corrected(root: Path) -> None:
    folder = write()
    edit_metadata(folder, dataset_size=77.0)
    (folder.parent / "namespace_metadata.json").unlink()
    assert [action.verb for action in repaired(root)] == [Verb.CORRECT, Verb.ADD]
    assert json.loads((folder / "data" / "metadata.json").read_text())["dataset_size"] < 2.0
    assert json.loads((folder.parent / "namespace_metadata.json").read_text())
    moved = folder.with_name("moved-v3")
    folder.rename(moved)
    (action,) = repaired(root)
    assert action.why == f"dataset_id was {CN_ID!r}"
    assert_same(dataset.load(moved.relative_to(root).as_posix()).episodes, CN_EPISODES)


def test_a_collector_that_was_killed_is_named(root: Path) -> None:
    folder = write()
    shutil.copytree(folder / "data", root / "tmpabcdef")
    (action,) = repaired(root)
    assert (action.verb, action.place) == (Verb.LEAVE, "tmpabcdef")


def test_an_interrupted_collection_is_kept(root: Path) -> None:
    shards = root / "lab" / "game" / ".played-v0.collecting"
    shards.mkdir(parents=True)
    (shards / "shard-000000.safetensors").write_bytes(b"episodes")
    (action,) = repaired(root)
    assert (action.verb, action.place) == (Verb.LEAVE, "lab/game/.played-v0.collecting")
    assert (shards / "shard-000000.safetensors").read_bytes() == b"episodes"


def test_healthy_data_sets_stay_as_they_are(root: Path) -> None:
    write()
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(STOCK) + "create()"], check=True)
    assert repaired(root) == []


# The command


def test_one_data_set_or_all(root: Path) -> None:
    first, second = write(), write("om2p/cooperative-navigation/other-v1")
    for folder in (first, second):
        edit_metadata(folder, dataset_size=77.0)
    runner = CliRunner()
    shown = runner.invoke(app, ["repair", CN_ID, "--dry-run"]).output
    assert shown.startswith(f"would correct {CN_ID}/data/metadata.json: dataset_size was 77 MB")
    assert runner.invoke(app, ["repair", CN_ID]).output.startswith("corrected ")
    shown = runner.invoke(app, ["repair"]).output
    assert "other-v1" in shown
    assert CN_ID not in shown
    assert runner.invoke(app, ["repair"]).output == "nothing to repair\n"
    shown = runner.invoke(app, ["repair", "--delete"]).output
    assert shown.count("deleted .quarantine/") == 2
    with pytest.raises(UserError, match="unknown data set in"):
        repair.repair("om2p/cooperative-navigation/none-v0")
