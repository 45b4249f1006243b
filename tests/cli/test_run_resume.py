"""om2p-train run, killed and interrupted as a shell and a scheduler do it, and taken up again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import RANDOM_ID, Run, assert_one_line, contents

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
LONG_RUN = [
    "run", "--algo", "om2p", "--dataset", RANDOM_ID, "--seeds", "0,3", "--threads", "1", "--no-tensorboard",
    "--set", "run.updates=300", "--set", "run.evaluate_every=30", "--set", "run.evaluation_episodes=4",
    "--set", "run.checkpoint_every=20", "--set", "run.log_every=10", "--set", "network.hidden=[8,8]",
]  # fmt: skip


def results(folder: Path) -> dict[str, bytes]:
    names = ["metrics.csv", "evaluations.csv", "policies/seed0.safetensors", "policies/seed3.safetensors"]
    return {name: (folder / name).read_bytes() for name in names}


def program(arguments: list[str]) -> list[str]:
    return [sys.executable, "-c", "from om2p_cli.train import main; main()", *arguments]


def ended_by(number: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """The long run, which gets a signal when its first evaluation is written."""
    command = program([*LONG_RUN, "--out", str(folder)])
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        path = folder / "evaluations.csv"
        while process.poll() is None and not (path.exists() and path.stat().st_size):
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module")
def whole(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the long run leaves when nobody interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    environment = os.environ | {"MINARI_DATASETS_PATH": str(workspace / "datasets")}
    subprocess.run(program([*LONG_RUN, "--out", str(folder)]), check=True, capture_output=True, env=environment)
    return results(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_goes_on_after_a_signal(number: int, code: int, run: Run, here: Path, whole: dict[str, bytes]) -> None:
    ended = ended_by(number, Path("new"))
    assert ended.returncode == code, ended.stderr
    assert not Path("new/policies").exists()
    command = "om2p-train run --resume --out new"
    if code > 0:
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("stopped at update ")
        assert last.endswith(f"; to go on: {command}")
        assert "Traceback" not in ended.stderr
    found = run(*shlex.split(command))
    assert found.code == 0
    assert "| om2p" in found.out
    assert "update 300 of 300, return" in found.err  # no terminal: plain lines
    assert results(Path("new")) == whole


def test_a_finished_run_says_so_and_prints_its_table(run: Run, here: Path) -> None:
    before = contents(here)
    found = run("om2p-train", "run", "--resume", "--out", "runs/bc")
    assert found.code == 0
    assert found.out.startswith("the run in runs/bc is finished already\n")
    assert "| bc " in found.out
    assert contents(here) == before


def test_a_run_needs_a_data_set(run: Run, here: Path) -> None:
    assert_one_line(run("om2p-train", "run"), r"--dataset is missing .*or --resume --out RUN_FOLDER")
    assert_one_line(run("om2p-train", "run", "--resume", "--out", "none"), r"none holds no run to go on with")
    assert_one_line(run("om2p-train", "run", "--resume", "--out", "runs"), r"runs is not empty and not only a run")
