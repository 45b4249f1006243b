"""Both command lines: what they offer, from generating to a picture, wrong usage, and as installed programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import minari
import pytest
from typer.testing import CliRunner

from om2p_data.envs import TASKS
from om2p_data.recipe import bundled

from .conftest import PROGRAMS, RANDOM_ID, TINY_RUN, Result, Run, assert_one_line, contents

# What they offer


def help_of(program: str, *command: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(
        PROGRAMS[program].app, [*command, "--help"]
    )
    assert result.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


@pytest.mark.parametrize(
    ("program", "command", "words"),
    [
        ("om2p-data", [], "generate train train-prey list envs"),
        (
            "om2p-data",
            ["generate"],
            "--env --tier --transitions --mix --seed --fresh --version --recipe --set --root --overwrite --quiet "
            "medium-replay 1,000,000 0.1 0.001",
        ),
        ("om2p-data", ["train"], "--env --until --seed --recipe --set --out --quiet medium expert"),
        ("om2p-data", ["train-prey"], "--env --out --seed --recipe --set --quiet pp world"),
        ("om2p-data", ["list"], "--root MINARI_DATASETS_PATH"),
        ("om2p-train", [], "run report render recipes sweep reproduce"),
        (
            "om2p-train",
            ["run"],
            "--dataset --algo --seeds --scale --device --set --out --root --overwrite --tensorboard --threads "
            "--quiet 0-4 0,2,5 cpu paper cuda",
        ),
        ("om2p-train", ["report"], "RUNS --out --title report.html table.md table.tex results.csv runs.jsonl PNG PDF"),
        ("om2p-train", ["publish"], "FOLDERS --out reproduce runs.jsonl RESULTS.md"),
        (
            "om2p-train",
            ["reproduce"],
            "NAME --scale --tasks --tiers --recipes --seeds --engine --list table1 vgm2p strict",
        ),
        ("om2p-train", ["render"], "POLICY --out --seed --episodes --max-steps GIF"),
    ],
)
def test_help_mentions_the_options(program: str, command: list[str], words: str) -> None:
    text = help_of(program, *command).lower()
    assert [word for word in words.split() if word.lower() not in text] == []


def test_lists_of_what_there_is(run: Run, here: Path) -> None:
    envs = run("om2p-data", "envs")
    assert envs.code == 0
    assert [line.split()[0] for line in envs.out.splitlines()[1:-1]] == list(TASKS)
    assert run("om2p-train", "recipes") == (0, "".join(f"{name}\n" for name in bundled("train")), "")
    listed = run("om2p-data", "list")
    assert (listed.code, listed.err) == (0, "")
    assert re.search(rf"^{RANDOM_ID} +500 +20 +\d+\.\d ± \d+\.\d +\d+\.\d$", listed.out, re.MULTILINE)
    nothing = run("om2p-data", "list", "--root", here / "empty")
    assert (nothing.code, nothing.out.startswith(f"no data sets in {here / 'empty'}")) == (0, True)


# From generating to a picture


def test_generate_train_report_and_render(run: Run, here: Path) -> None:
    made = run(
        "om2p-data", "generate", "--env", "cn", "--tier", "random", "--transitions", 260, "--version", 2, "--quiet"
    )
    assert (made.code, made.err) == (0, "")
    assert re.match(r"om2p/cooperative-navigation/random-v2: 275 transitions in 11 episodes, return ", made.out)
    assert "(published: 159.6)" in made.out
    assert minari.load_dataset("om2p/cooperative-navigation/random-v2").total_steps == 275

    trained = run("om2p-train", *TINY_RUN)
    assert (trained.code, trained.err) == (0, "")
    folder = Path("runs", "cooperative-navigation", "random", "bc")
    assert trained.out.endswith(f"\nin {folder}\n")
    assert sorted(path.name for path in (folder / "policies").iterdir()) == ["seed0.safetensors", "seed3.safetensors"]
    assert json.loads((folder / "run.json").read_text())["finished"]

    report = run("om2p-train", "report", folder, "runs/bc", "--out", "report")
    assert (report.code, report.err) == (0, "")
    assert len(re.findall(r"^\| bc ", report.out, re.MULTILINE)) == 2
    table, _, _ = report.out.partition("\n\n- ")  # what follows are remarks, in the file after all tables
    assert table.strip() in (here / "report" / "table.md").read_text()
    assert "<title>Results</title>" in (here / "report" / "report.html").read_text()
    assert (here / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")

    policy = folder / "policies" / "seed0.safetensors"
    drawn = run("om2p-train", "render", policy, "--max-steps", 2, "--episodes", 2, "--out", "pictures/a.gif")
    assert re.fullmatch(r"wrote pictures/a\.gif: 6 frames, returns -?\d+\.\d, -?\d+\.\d\n", drawn.out)
    assert (here / "pictures" / "a.gif").read_bytes().startswith(b"GIF89a")


# What is wrong


def test_a_data_set_folder_that_cannot_be_made(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(here / "file" / "below"))
    before = contents(here)
    message = "cannot make the data set folder: .*MINARI_DATASETS_PATH"
    assert_one_line(run("om2p-data", "list"), message)
    assert_one_line(run("om2p-data", "generate", "--env", "cn", "--tier", "random"), message)
    assert_one_line(run("om2p-train", *TINY_RUN), message)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("om2p-data", ["genrate"], "No such command 'genrate'"),
        ("om2p-data", ["generate", "--env", "cn"], "Missing option '--tier'"),
        ("om2p-data", ["generate", "--env", "cn", "--tier", "random", "--transitions", "many"], "'--transitions'"),
        ("om2p-data", ["generate", "--env", "cn", "--tier", "random", "--seed", "-1"], "'--seed'"),
        ("om2p-data", ["generate", "--env", "cn", "--teer", "random"], "No such option: --teer"),
        ("om2p-train", ["run"], "--dataset is missing"),
        ("om2p-train", ["run", "--dataset", RANDOM_ID, "--threads", "0"], "'--threads'"),
        ("om2p-train", ["report"], "Missing argument"),
        ("om2p-train", ["render", "a", "--episodes", "0"], "'--episodes'"),
    ],
)
def test_wrong_usage(program: str, arguments: list[str], message: str, run: Run, here: Path) -> None:
    before = contents(here)
    found = run(program, *arguments)
    assert found.code == 2
    assert message in re.sub(r"\x1b\[[0-9;]*m", "", found.err)
    assert "Traceback" not in found.err
    assert contents(here) == before


# The installed programs


def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name(program)
    return subprocess.run([script, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (
            "om2p-data",
            ["generate", "--env", "cnn", "--tier", "medium"],
            "unknown environment 'cnn': did you mean",
        ),
        ("om2p-train", ["report", "datasets"], "datasets is not a run folder"),
    ],
)
def test_a_real_process_ends_with_code_2_and_one_line(
    program: str, arguments: list[str], message: str, here: Path
) -> None:
    before = contents(here)
    found = call(program, *arguments)
    assert_one_line(Result(found.returncode, found.stdout, found.stderr), message)
    assert contents(here) == before


def test_a_real_process_ends_with_code_0(here: Path) -> None:
    del here
    assert call("om2p-train", "recipes").stdout.split() == bundled("train")
    wrong = call("om2p-data", "generate")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Missing option" in wrong.stderr
