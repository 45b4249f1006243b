"""om2p-train sweep on this machine: whole, interrupted, broken, and given again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from om2p_data.storage import locked

SWEEP = """
tasks = ["cn"]
tiers = ["random"]
algorithms = ["bc", "bc-flow"]
seeds = [0, 1]
transitions = 500
settings = ["run.updates=20", "run.evaluate_every=10", "run.evaluation_episodes=4", "network.hidden=[8]"]
"""
LONG = SWEEP.replace("run.updates=20", "run.updates=400").replace("every=10", "every=20")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path


def begun(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-c", "from om2p_cli.train import main; main()", "sweep", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(found, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def contents(folder: Path) -> dict[str, bytes]:
    kept = ("evaluations.csv", "metrics.csv", "policies/seed0.safetensors", "policies/seed1.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for name in kept for path in folder.glob(f"*/{name}")}


def test_a_sweep_makes_data_trains_and_prints_a_table(run, here):
    Path("mine.toml").write_text(SWEEP)
    found = run("om2p-train", "sweep", "mine.toml", "--workers", "2")
    assert found.code == 0, found.err
    assert "| bc " in found.out
    assert "| bc-flow " in found.out
    assert "begins: data-cn-random" in found.err
    listed = run("om2p-train", "sweep", "mine.toml", "--list")
    assert [line.split()[0] for line in listed.out.splitlines()[::2]] == ["done"] * 3
    times = {path: path.stat().st_mtime_ns for path in Path("sweeps/mine").rglob("*") if path.is_file()}
    again = run("om2p-train", "sweep", "mine.toml")
    assert again.code == 0
    assert "begins" not in again.err
    assert again.out == found.out
    assert times == {path: path.stat().st_mtime_ns for path in Path("sweeps/mine").rglob("*") if path.is_file()}


def test_a_sweep_goes_on_after_a_signal_and_after_the_death_of_its_workers(run, here):
    Path("whole.toml").write_text(LONG)
    assert run("om2p-train", "sweep", "whole.toml", "--workers", "2").code == 0
    whole = contents(Path("sweeps/whole"))

    Path("mine.toml").write_text(LONG)
    process = begun("mine.toml", "--workers", "1")
    wait_for(lambda: any(Path("sweeps/mine").glob("*/evaluations.csv")))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "stopped; to go on: om2p-train sweep mine.toml --out sweeps/mine --workers 1"

    process = begun("mine.toml", "--workers", "1")
    wait_for(lambda: len(children(process.pid)) > 0)
    os.kill(children(process.pid)[0], signal.SIGKILL)  # a worker, which is given its job again
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "broke down (killed by signal 9) and begins again" in err
    assert "| bc-flow " in out
    assert contents(Path("sweeps/mine")) == whole


def children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def test_what_fails_is_named_and_the_rest_is_done(run, here):
    text = SWEEP.replace('algorithms = ["bc", "bc-flow"]', 'algorithms = ["bc"]')
    Path("mine.toml").write_text(text + '[variants]\nfine = []\nbig = ["optimizer.batch_size=100000"]\n')
    found = run("om2p-train", "sweep", "mine.toml", "--workers", "1", "--quiet")
    assert found.code == 2
    first, last = found.err.splitlines()
    assert first.startswith("failed: cn-random-bc-")
    assert "optimizer.batch_size is 100000" in first
    assert last == "error: 1 of 3 jobs failed; the same command tries them again"
    assert "- missing on om2p/cooperative-navigation/random-v0: bc, batch_size=" in found.out
    assert "| bc " in found.out


def test_cells_without_their_data_are_left_out(run, here):
    Path("mine.toml").write_text(SWEEP.replace("transitions = 500", f"transitions = {10**14}"))  # no disk holds them
    found = run("om2p-train", "sweep", "mine.toml", "--quiet", "--retries", "0")
    assert found.code == 2
    assert "failed: data-cn-random: " in found.err
    assert "left out, since they need what failed: cn-random-bc-" in found.err


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (["--transitions", "100"], "made with transitions = 100, and the sweep wants transitions = 500"),
        (["--transitions", "500", "--seed", "3"], "made with data_seed = 3, and the sweep wants data_seed = 0"),
    ],
)
def test_other_data_of_the_same_id_are_no_match(run, here, made, line):
    Path("mine.toml").write_text(SWEEP)
    assert run("om2p-data", "generate", "--env", "cn", "--tier", "random", "--quiet", *made).code == 0
    found = run("om2p-train", "sweep", "mine.toml")
    assert found.code == 2
    assert line in found.err
    assert len(found.err.splitlines()) == 1


def test_finished_cells_are_held_against_the_data_that_are_there(run, here):
    Path("mine.toml").write_text(SWEEP.replace('["bc", "bc-flow"]', '["bc"]'))
    assert run("om2p-train", "sweep", "mine.toml", "--quiet").code == 0
    again = ["--env", "cn", "--tier", "random", "--transitions", "500", "--quiet", "--overwrite"]
    assert run("om2p-data", "generate", *again, "--set", "collection.num_envs=3").code == 0
    found = run("om2p-train", "sweep", "mine.toml")
    assert found.code == 2
    assert "learned from other contents of om2p/cooperative-navigation/random-v0" in found.err
    assert len(found.err.splitlines()) == 1


def test_one_sweep_at_a_time_in_a_folder(run, here):
    Path("mine.toml").write_text(SWEEP)
    Path("sweeps/mine/logs").mkdir(parents=True)
    with locked(Path("sweeps/mine/logs"), wait=False):
        found = run("om2p-train", "sweep", "mine.toml")
    assert found.code == 2
    assert "another sweep is at work in sweeps/mine" in found.err


SBATCH = """#!/usr/bin/env bash
# Stands in for Slurm: does every task of an array at once, and says what it was asked for.
script="${@: -1}"
echo "$*" >> asked.txt
last=$(sed -n 's/^#SBATCH --array=1-//p' "$script")
for task in $(seq "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$script" > /dev/null 2>&1 || exit 1; done
echo "7;cluster"
"""


def test_scripts_for_slurm_do_the_sweep(run, here, monkeypatch):
    Path("mine.toml").write_text(SWEEP)
    stand_in = Path("bin/sbatch")
    stand_in.parent.mkdir()
    stand_in.write_text(SBATCH)
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent.resolve()}:{os.environ['PATH']}")
    found = run("om2p-train", "sweep", "mine.toml", "--sbatch", "slurm scripts")
    assert found.code == 0, found.err
    assert found.out.startswith("3 of 3 jobs are to be done")
    subprocess.run(["slurm scripts/submit.sh", "--partition=night"], check=True, capture_output=True)
    first, second = Path("asked.txt").read_text().splitlines()
    assert first.startswith("--parsable --partition=night ")
    assert second.startswith("--dependency=afterok:7 --kill-on-invalid-dep=yes --partition=night ")
    done = run("om2p-train", "sweep", "mine.toml", "--quiet")
    assert done.code == 0
    assert "| bc-flow " in done.out
    again = run("om2p-train", "sweep", "mine.toml", "--sbatch", "slurm scripts")
    assert again.code == 2
    assert "all jobs of mine are done" in again.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--engine", "cloud"], "'cloud'"),
        (["--address", "auto"], "--address is an option of --engine ray"),
        (["--engine", "local", "--gpus-per-job", "0.5"], "--gpus-per-job is an option of --engine ray"),
        (["--engine", "ray", "--storage", "none"], "'none'"),
        (["--engine", "ray", "--fetch-every", "5"], "--fetch-every is an option of --storage fetch"),
        (
            ["--engine", "ray", "--gpus-per-job", "0.5"],
            "--gpus-per-job needs jobs with device = 'cuda'",
        ),
        (["--engine", "ray", "--sbatch", "scripts"], "take one of them"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(run, here, words, line):
    Path("mine.toml").write_text(SWEEP)
    found = run("om2p-train", "sweep", "mine.toml", *words)
    assert found.code == 2
    assert line in found.err
    assert len(found.err.splitlines()) == 1
    assert not Path("sweeps").exists()


@pytest.mark.parametrize("gpus", ["0", "-1", "1.5"])
def test_shares_of_a_gpu_that_ray_does_not_have_are_refused(run, here, gpus):
    Path("mine.toml").write_text(SWEEP + 'device = "cuda"\n')
    found = run("om2p-train", "sweep", "mine.toml", "--engine", "ray", "--gpus-per-job", gpus)
    assert found.code == 2
    assert "--gpus-per-job takes a fraction up to 1 or a whole number" in found.err


def test_without_the_package_ray_the_line_says_what_to_install(run, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "om2p_train.ray_engine", raising=False)
    monkeypatch.delattr("om2p_train.ray_engine", raising=False)
    Path("mine.toml").write_text(SWEEP)
    found = run("om2p-train", "sweep", "mine.toml", "--engine", "ray", "--quiet")
    assert found.code == 2
    assert found.err == "error: --engine ray needs the package ray: pip install 'om2p[ray]'\n"
