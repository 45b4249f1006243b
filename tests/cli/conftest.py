"""Both command lines, called as a user calls them, in a folder with a data set and a finished run."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from om2p_cli import data, train
from typer.testing import CliRunner

PROGRAMS = {"om2p-data": data, "om2p-train": train}
RANDOM_ID = "om2p/cooperative-navigation/random-v0"
TINY_RUN = [
    "run", "--algo", "bc", "--dataset", RANDOM_ID, "--seeds", "0,3", "--quiet", "--threads", "1", "--no-tensorboard",
    "--set", "run.updates=20", "--set", "run.evaluate_every=10", "--set", "run.evaluation_episodes=4",
    "--set", "network.hidden=[8]",
]  # fmt: skip


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # --threads sets it for the whole process


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The whole way of a command line, from its arguments to its exit code."""

    def invoke(program: str, *arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            PROGRAMS[program].main()
        written = capsys.readouterr()
        return Result(int(caught.value.code or 0), written.out, written.err)

    return invoke


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in `datasets` and a finished run in `runs/bc`, made by the two command lines."""
    folder = tmp_path_factory.mktemp("workspace")
    environment = {"MINARI_DATASETS_PATH": str(folder / "datasets"), "OM2P_HOME": str(folder / "home")}
    runner = CliRunner(env=environment)
    generate = ["generate", "--env", "cn", "--tier", "random", "--transitions", "500", "--quiet"]
    for app, arguments in ((data.app, generate), (train.app, [*TINY_RUN, "--out", str(folder / "runs" / "bc")])):
        made = runner.invoke(app, arguments)
        assert made.exit_code == 0, made.output
    return folder


@pytest.fixture
def here(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace, and the working directory."""
    copy = tmp_path / "here"
    shutil.copytree(workspace, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "datasets")
    monkeypatch.setenv("OM2P_HOME", "home")
    (copy / "file").touch()
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def assert_one_line(found: Result, message: str) -> None:
    assert found.code == 2
    assert found.err.endswith("\n")
    assert found.err.count("\n") == 1, found.err
    assert found.err.startswith("error: ")
    assert re.search(message, found.err), found.err
    assert found.out == ""
