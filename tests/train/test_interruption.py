"""Interrupted runs: they end as if nothing had happened, byte for byte."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from om2p_data import checkpoints
from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_train import results as result_files
from om2p_train import run_folder
from om2p_train.interruption import Interrupted
from om2p_train.learner import Learner
from om2p_train.loggers import Loggers

from .runs import make_dataset, results, run

UPDATES = 24
# ma-sfbc changes its stage after 12, 16 and 20 updates, and plans anew before the last two.
SETTINGS = {
    "om2p": (),
    "ma-sfbc": ("options.behavior_share=0.5", "options.rounds=3", "network.hidden=[8]"),
    "bc": ("data.normalize_obs=true", "data.behavior_teams=2", "network.hidden=[8]"),
}
LOOP = (f"run.updates={UPDATES}", "run.log_every=4", "run.evaluate_every=8", "run.evaluation_episodes=2")


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("datasets"))


Small = Callable[..., Path]


@pytest.fixture(scope="module")
def small(data: Dataset) -> Small:
    def train(folder: Path, algo: str = "om2p", checkpoint_every: int = 5, **options: object) -> Path:
        settings = (*LOOP, f"run.checkpoint_every={checkpoint_every}", *SETTINGS[algo])
        return run(data, folder, *settings, algo=algo, **({"loggers": Loggers(tensorboard=False)} | options))

    return train


@pytest.fixture(scope="module")
def whole(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What runs leave that were not interrupted."""
    root = tmp_path_factory.mktemp("whole")
    return {algo: results(small(root / algo, algo)) for algo in SETTINGS}


@contextlib.contextmanager
def at_update(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Within the block, have `act` called at the beginning of the update that is the `number`-th of its start."""
    real, count = Learner.update, itertools.count(1)

    def update(self: Learner, most: int = 1):
        if next(count) == number:
            act()
        return real(self, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", update)
        yield


@contextlib.contextmanager
def killed_at(number: int) -> Iterator[None]:
    """The block dies at that update of its start."""

    def die() -> None:
        raise Killed

    with at_update(number, die), pytest.raises(Killed):
        yield


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


# Before the first checkpoint; between the second evaluation and its checkpoint; at a change of stage; in the last one.
@pytest.mark.parametrize("update", [4, 9, 13, 24])
@pytest.mark.parametrize("algo", list(SETTINGS))
def test_a_killed_run_goes_on_as_if_nothing_had_happened(algo, update, small, whole, tmp_path):
    with killed_at(update):
        small(tmp_path / "run", algo)
    with pytest.raises(UserError, match="has not finished"):
        result_files.read(tmp_path / "run")
    assert results(small(tmp_path / "run", algo, resume=True)) == whole[algo]
    facts = run_folder.read_facts(tmp_path / "run")
    assert [entry["update"] for entry in facts["resumed"]] == [(update - 1) // 5 * 5]
    assert facts["timing"]["updates_per_second"] > 0


def test_a_run_can_be_killed_again_and_again(small, whole, tmp_path):
    """Every start gets three updates further: starts fall on each change of stage and beside it."""
    for _ in range(UPDATES // 3):
        with killed_at(4):
            small(tmp_path / "run", "ma-sfbc", checkpoint_every=1, resume=True)
            raise Killed  # the last start comes to the end
    assert results(tmp_path / "run") == whole["ma-sfbc"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_at_a_checkpoint(number, small, whole, tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with at_update(16, lambda: interrupt(number)), pytest.raises(Interrupted, match="stopped at update 16") as stopped:
        small(tmp_path / "run", "ma-sfbc")
    assert (stopped.value.number, stopped.value.update) == (number, 16)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert results(small(tmp_path / "run", "ma-sfbc", resume=True)) == whole["ma-sfbc"]
    assert run_folder.read_facts(tmp_path / "run")["resumed"][0]["update"] == 16


def test_a_second_ctrl_c_stops_at_once(small, whole, tmp_path):
    with at_update(7, lambda: (interrupt(), interrupt())), pytest.raises(KeyboardInterrupt) as stopped:
        small(tmp_path / "run")
    assert not isinstance(stopped.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert results(small(tmp_path / "run", resume=True)) == whole["om2p"]
    assert run_folder.read_facts(tmp_path / "run")["resumed"][0]["update"] == 5


def test_a_signal_in_the_last_update_lets_the_run_finish(small, whole, tmp_path):
    with at_update(UPDATES, interrupt):
        assert results(small(tmp_path / "run")) == whole["om2p"]
    assert run_folder.read_facts(tmp_path / "run")["finished"]


def test_an_ignored_signal_stays_ignored(small, whole, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts in the background
    try:
        with at_update(3, interrupt):
            assert results(small(tmp_path / "run")) == whole["om2p"]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_leaves_signals_alone(small, whole, tmp_path):
    seen = []
    with at_update(3, lambda: seen.append(signal.getsignal(signal.SIGINT))):
        thread = threading.Thread(target=small, args=(tmp_path / "run",))
        thread.start()
        thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
    assert results(tmp_path / "run") == whole["om2p"]


@pytest.mark.parametrize("call", [1, 3])
def test_a_full_disk_ends_a_run_with_one_line_and_loses_nothing(call, small, whole, tmp_path, monkeypatch):
    real, calls = checkpoints.save, []

    def save(path: Path, state: dict) -> None:
        calls.append(path)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save)
        with pytest.raises(UserError, match=r"run: No space left on device; .* the same command with --resume goes on"):
            small(tmp_path / "run")
    assert results(small(tmp_path / "run", resume=True)) == whole["om2p"]


def test_a_run_that_wrote_no_policies_yet_gets_them(small, whole, tmp_path, monkeypatch):
    def die(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("om2p_train.trainer.save_policy", die)
        with pytest.raises(Killed):
            small(tmp_path / "run")
    assert results(small(tmp_path / "run", resume=True)) == whole["om2p"]
