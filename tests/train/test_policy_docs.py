"""The loops of docs/policies.md, run as they stand."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import torch

from om2p_data.envs import parallel_env
from om2p_train import load_policy
from om2p_train.actors import FlowActor, OneStep
from om2p_train.arena import named
from om2p_train.export import Format, export
from om2p_train.networks import NetworkConfig
from om2p_train.policy import save_policy
from om2p_train.streams import EVALUATION, INITIALISATION, SeedStreams
from om2p_train.team import Team

from ..docs import pages

POLICY = Path("runs/cooperative-navigation/medium/om2p/policies/seed0.safetensors")  # as the page calls it


@pytest.fixture
def files(tmp_path, monkeypatch):
    card = named("cn")
    network = NetworkConfig.model_validate({"hidden": (8,), "activation": "relu", "critic_layer_norm": False})
    actor = FlowActor(SeedStreams([0], INITIALISATION), Team.of(card.spec), network, OneStep.RAW)
    monkeypatch.chdir(tmp_path)
    POLICY.parent.mkdir(parents=True)
    save_policy(POLICY, actor, 0, card, {})


def blocks() -> list[str]:
    found = [block.text for block in pages.blocks(pages.read("docs/policies.md")) if block.language == "python"]
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
    export(load_policy(POLICY), Path(name), form)
    names: dict = {}
    exec(blocks()[number], names)
    assert played(names["act"]) == 25


def team_return(act, seed: int) -> float:
    env = parallel_env("cn")
    obs, _ = env.reset(seed=seed)
    total = 0.0
    while env.agents:
        obs, rewards, *_ = env.step(act(obs))
        total += sum(rewards.values()) / len(rewards)
    return total


@pytest.mark.parametrize(("form", "number", "name"), [(Format.ONNX, 1, "team.onnx"), (Format.TORCH, 2, "team.pt2")])
def test_a_team_scores_the_same_from_the_exported_file_alone(files, form, number, name, monkeypatch):
    """The documented loops get the noise that the policy draws, and their actions earn what the policy's earn."""
    if form is Format.ONNX:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    policy = load_policy(POLICY, seed=5)
    export(policy, Path(name), form)
    names: dict = {}
    exec(blocks()[number], names)
    wanted = [team_return(policy.act, seed) for seed in range(4)]
    streams = SeedStreams([5], EVALUATION)
    drawn = iter([streams.normal(3, 1, 2) for _ in range(4 * 25)])
    if form is Format.TORCH:
        monkeypatch.setattr(torch, "randn", lambda *shape: next(drawn).view(shape))
    else:
        names["rng"] = types.SimpleNamespace(standard_normal=lambda shape: next(drawn).view(shape).numpy())
    found = [team_return(names["act"], seed) for seed in range(4)]
    assert np.std(wanted) > 1.0
    np.testing.assert_allclose(found, wanted, atol=0.01)
