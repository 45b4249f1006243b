"""The benchmark counts and measures what it says, and the queue for a GPU does its jobs once."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from om2p_data.recipe import bundled
from om2p_train.bench import limits
from om2p_train.bench.cases import Case, made_up
from om2p_train.compute import Precision
from om2p_train.config import Scale

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("network.hidden=[16,8]", "optimizer.batch_size=32")


def work(recipe: str, seeds: int = 1, *settings: str) -> limits.Work:
    case = Case(recipe, "cn", seeds, (*SMALL, *settings), "cpu")
    return limits.work_of(case, case.resolve(Scale.CPU), made_up("cn", 1000))


def test_work_of_behaviour_cloning_in_closed_form():
    # Forward, and back once to the weights and once to the values, but for the first layer's input.
    layers = [18 * 16, 16 * 8, 8 * 2]
    assert work("bc").flops == 2 * 3 * 32 * (3 * sum(layers) - layers[0])
    weights = 3 * (sum(layers) + 16 + 8 + 2)
    assert work("bc").moved == 4 * 7 * weights


def test_work_grows_with_seeds_and_with_the_exact_derivative():
    one, five = work("om2p"), work("om2p", 5)
    assert five.flops == 5 * one.flops
    assert five.moved == 5 * one.moved
    forward = 2 * 3 * 32 * (22 * 16 + 16 * 8 + 8 * 2)
    assert one.flops - work("om2p", 1, "options.derivative='zero'").flops == forward


def test_a_machine_has_rates():
    machine = limits.measure("cpu", Precision.FULL)
    assert 1e9 < machine.flops < 1e14
    assert 1e8 < machine.moved < 1e13
    assert machine.milliseconds(limits.Work(machine.flops, machine.moved)) == pytest.approx(2000)


@pytest.fixture
def queue(tmp_path):
    def run(*words: str, **settings: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"DEVICE": "cpu", "SCALE": "cpu", "PYTHON": sys.executable}
        environment |= {"RESULTS": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), **settings}
        script = ROOT / "benchmarks" / "gpu_queue.sh"
        return subprocess.run([script, *words], env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_queue_does_every_job_once(queue, tmp_path):
    jobs = "profile-om2p endurance-om2p"
    first = queue(JOBS=jobs)
    assert first.returncode == 0, first.stderr
    assert "GFLOP an update" in (tmp_path / "out" / "profile-om2p.txt").read_text()
    points = json.loads((tmp_path / "out" / "endurance-om2p.json").read_text())["rows"]
    assert points[-1]["updates"] == 200
    assert "== " not in queue(JOBS=jobs).stdout
    listed = queue("--list").stdout.splitlines()
    assert "done     profile-om2p" in listed
    assert "waiting  bench-cn-om2p" in listed


def test_the_queue_stops_at_its_limit(queue, tmp_path):
    result = queue(LIMIT="10")
    assert result.returncode == 0
    assert "out of time before imports" in result.stdout
    assert not any((tmp_path / "out").iterdir())


def test_results_travel_in_an_archive(queue, tmp_path):
    """What a machine has done in one folder is done for another one that is given the archive."""
    archive, jobs = str(tmp_path / "results.tar"), "imports profile-om2p"
    (tmp_path / "first").mkdir()
    first = queue(JOBS=jobs, ARCHIVE=archive, RESULTS=str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    assert "torch " in (tmp_path / "first" / "imports.txt").read_text()
    second = queue(JOBS=jobs, ARCHIVE=archive)
    assert "== " not in second.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"imports.txt", "profile-om2p.txt"}


def test_the_queue_needs_no_installation(queue, tmp_path):
    """The version of a project that is not installed comes from its own file."""
    assert queue("--list").returncode == 0
    (info,) = (tmp_path / "work" / "path").glob("om2p-*.dist-info")
    (found,) = importlib.metadata.distributions(path=[str(info.parent)])
    assert (found.name, found.version) == ("om2p", importlib.metadata.version("om2p"))


@pytest.fixture
def stand_in(tmp_path):
    """An interpreter that notes what it is asked for, makes the files that are wanted, and a checkpoint at TERM."""
    path = tmp_path / "python"
    path.write_text(
        f"""#!/usr/bin/env bash
        echo "$*" >> {tmp_path}/asked
        trap 'sleep 1; echo checkpoint; exit 143' TERM
        for word; do case $word in *.json | *.txt) echo > "$word" ;; esac; done
        [[ $* != *" run --dataset"* || -z "${{SLOW:-}}" ]] || {{ sleep 60 & wait; }}
        """
    )
    path.chmod(0o755)
    return path


def test_every_job_asks_for_what_there_is(queue, stand_in, tmp_path):
    result = queue(PYTHON=str(stand_in), SCALE="paper", DEVICE="cuda")
    assert (result.returncode, result.stderr) == (0, "")
    listed = queue("--list", SCALE="paper", DEVICE="cuda").stdout.splitlines()
    assert len(listed) > 60
    assert all(line.startswith("done ") for line in listed)
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    benches = [words for words in asked if "bench" in words and "--env" in words]
    assert len(benches) > 20
    for words in benches:
        values = dict(itertools.pairwise(words))
        settings = (values["--set"],) if "--set" in values else ()
        Case(values["--recipes"], values["--env"], 1, settings, "cuda").resolve(Scale.PAPER)
    cells = [words for words in asked if "--algo" in words]
    assert {words[words.index("--algo") + 1] for words in cells} <= set(bundled("train"))
    tasks = ("cooperative-navigation", "halfcheetah-2x3")
    wanted = {f"om2p/{task}/{tier}-v0" for task in tasks for tier in ("medium", "expert")}
    assert {words[words.index("--dataset") + 1] for words in cells} == wanted


def test_what_the_limit_stops_writes_its_checkpoint(queue, stand_in):
    """The shell around it does not leave before it."""
    result = queue(PYTHON=str(stand_in), JOBS="cell-cn-medium-omar", LIMIT="22", SLOW="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == [
        "checkpoint",
        "stopped by the limit: cell-cn-medium-omar goes on next time",
    ]


def test_jobs_that_were_tried_wait_for_the_others(queue, stand_in, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".imports.tried").touch()
    listed = queue("--list").stdout.splitlines()
    assert listed[0].split() == ["waiting", "tests"]
    assert listed[-1].split() == ["waiting", "imports"]


def test_a_job_that_is_none_is_named(queue):
    result = queue(JOBS="profile-om2p profile-nobody")
    assert result.returncode == 2
    assert "JOBS names profile-nobody" in result.stderr
