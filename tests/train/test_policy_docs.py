"""The loops of docs/policies.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from om2p_data.envs import parallel_env
from om2p_train import load_policy
from om2p_train.actors import FlowActor, OneStep
from om2p_train.arena import named
from om2p_train.export import Format, export
from om2p_train.networks import NetworkConfig
from om2p_train.policy import save_policy
from om2p_train.streams import INITIALISATION, SeedStreams
from om2p_train.team import Team

DOCS = Path(__file__).parents[2] / "docs" / "policies.md"


@pytest.fixture
def files(tmp_path, monkeypatch):
    card = named("cn")
    network = NetworkConfig.model_validate({"hidden": (8,), "activation": "relu", "critic_layer_norm": False})
    actor = FlowActor(SeedStreams([0], INITIALISATION), Team.of(card.spec), network, OneStep.RAW)
    save_policy(tmp_path / "policy.safetensors", actor, 0, card, {})
    monkeypatch.chdir(tmp_path)


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 3
    return found


def played(act) -> int:
    env = parallel_env("cn")
    obs, _ = env.reset(seed=0)
    steps = 0
    while env.agents:
        actions = act(obs)
        assert all(env.action_space(agent).contains(actions[agent]) for agent in env.agents)
        obs, *_ = env.step(actions)
        steps += 1
    return steps


def test_the_loop_of_a_policy_file(files):
    names: dict = {}
    exec(blocks()[0], names)
    assert np.isfinite(names["total"])
    assert names["total"] != 0


@pytest.mark.parametrize(("form", "number", "name"), [(Format.ONNX, 1, "team.onnx"), (Format.TORCH, 2, "team.pt2")])
def test_the_loops_of_exported_files(files, form, number, name):
    if form is Format.ONNX:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    export(load_policy("policy.safetensors"), Path(name), form)
    names: dict = {}
    exec(blocks()[number], names)
    assert played(names["act"]) == 25
