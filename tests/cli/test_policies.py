"""om2p-train evaluate and export as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run, assert_one_line, contents

SEED0, SEED3 = (Path(f"runs/bc/policies/seed{seed}.safetensors") for seed in (0, 3))


def test_evaluate_scores_files_on_the_same_episodes(run: Run, here: Path) -> None:
    arguments = ["evaluate", SEED0, SEED3, SEED0, "--episodes", 6, "--quiet", "--json", "returns.json"]
    found = run("om2p-train", *arguments)
    assert (found.code, found.err) == (0, "")
    written = json.loads((here / "returns.json").read_text())
    first, other, again = (entry["returns"] for entry in written)
    assert len(first) == 6
    assert first == again
    assert first != other
    assert f"{sum(first) / 6:.1f}" in found.out
    assert str(SEED0) in found.out
    elsewhere = run("om2p-train", *arguments, "--seed", 7)
    assert elsewhere.code == 0
    assert json.loads((here / "returns.json").read_text())[0]["returns"] != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors"], r"policy file missing\.safetensors does not exist"),
        (["file"], r"cannot read the policy file: "),
        ([SEED0, "--env", "hc"], r"halfcheetah-2x3"),
        ([SEED0, "--env", "cnn"], r"unknown environment 'cnn': did you mean 'cn'"),
        ([SEED0, "--json", "file/below.json", "--episodes", 2], r"cannot write file/below\.json"),
        ([SEED0, "--device", "cuda:99"], r"device 'cuda:99' cannot be used"),
    ],
)
def test_evaluate_refuses(arguments: list, message: str, run: Run, here: Path) -> None:
    before = contents(here)
    assert_one_line(run("om2p-train", "evaluate", "--quiet", *arguments), message)
    assert contents(here) == before


@pytest.mark.parametrize(("form", "name"), [("onnx", "team.onnx"), ("torch", "team.pt2")])
def test_export_says_what_it_wrote(form: str, name: str, run: Run, here: Path) -> None:
    found = run("om2p-train", "export", SEED0, "--out", name, "--format", form)
    assert (found.code, found.err) == (0, "")
    assert (here / name).stat().st_size > 1000
    assert f"wrote {name}: agent_0, agent_1, agent_2; takes obs" in found.out
    assert "largest difference to the policy: " in found.out
    assert "one observation on one thread: policy " in found.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "--out", "team.onnx"], r"policy file missing\.safetensors does not exist"),
        ([SEED0, "--out", "team.onnx", "--format", "onx"], r"unknown format 'onx': did you mean 'onnx'"),
        ([SEED0, "--out", "team.onnx", "--agent", "agent_7"], r"unknown agent 'agent_7': did you mean 'agent_"),
        ([SEED0, "--out", "file/team.onnx"], r"cannot write file/team\.onnx"),
    ],
)
def test_export_refuses(arguments: list, message: str, run: Run, here: Path) -> None:
    before = contents(here)
    assert_one_line(run("om2p-train", "export", *arguments), message)
    assert contents(here) == before
