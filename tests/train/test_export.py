"""Every kind of policy as a graph: ragged teams, bounds of their own, the whole team and one agent."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from om2p_data.errors import UserError
from om2p_train import export as exporting
from om2p_train.actors import ACTORS, Actor
from om2p_train.arena import named
from om2p_train.export import Format, Signature, export, graph_of
from om2p_train.networks import NetworkConfig
from om2p_train.policy import TeamPolicy
from om2p_train.spaces import from_unit
from om2p_train.streams import INITIALISATION, SeedStreams
from om2p_train.team import Team

NETWORK = NetworkConfig.model_validate({"hidden": (8,), "activation": "gelu", "critic_layer_norm": True})
ARCHITECTURE = {
    "flow": {"one_step": "eps+u"},
    "best-of-flow": {"one_step": "eps+u", "candidates": 3, "noise_scale": 0.5},
    "diffusion": {
        "score_hidden": [8], "time_features": 4, "solver_evaluations": 3, "candidates": 3, "sharpness": 2.0
    },
}  # fmt: skip
KINDS = [(kind, discrete) for kind in ACTORS for discrete in (False, True) if discrete or kind != "greedy"]


def team_of(kind: str, discrete: bool, behavior_teams: int = 0) -> TeamPolicy:
    """3 agents of different sizes, numbers in [-3, 1]."""
    card = named("cn")
    sizes = (2, 4, 3)
    bounds = {
        f"action_{side}": None if discrete else tuple((value,) * size for size in sizes)
        for side, value in (("low", -3.0), ("high", 1.0))
    }
    spec = dataclasses.replace(card.spec, obs_dims=(6, 5, 4), act_dims=sizes, discrete=(discrete,) * 3, **bounds)
    streams = SeedStreams([0], INITIALISATION)
    actor: Actor = ACTORS[kind](streams, Team.of(spec, behavior_teams), NETWORK, **ARCHITECTURE.get(kind, {}))
    if behavior_teams:
        actor.play_as(1)
    if kind == "diffusion":
        actor.get_buffer("trust").fill_(1.0)
    actor.standardize(torch.full((3, 1, 6), 0.5), torch.full((3, 1, 6), 2.0))
    return TeamPolicy(actor.requires_grad_(False), dataclasses.replace(card, spec=spec), {"seed": 4})


def drawn(shapes: list, batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [[batch if size == "batch" else size for size in shape] for shape in shapes]
    return [rng.standard_normal(shape).astype(np.float32) for shape in sizes]


@pytest.mark.parametrize("behavior_teams", [0, 3])
@pytest.mark.parametrize(("kind", "discrete"), KINDS)
def test_a_graph_gives_what_the_environment_takes(kind, discrete, behavior_teams):
    team = team_of(kind, discrete, behavior_teams)
    graph, signature = graph_of(team)
    assert ("noise" in signature.inputs) == (kind not in ("deterministic", "greedy"))
    inputs = [torch.from_numpy(value) for value in drawn(list(signature.inputs.values()), 7)]
    inputs[0] *= torch.from_numpy(~team.spec.padding[0]).unsqueeze(1)
    found = graph(*inputs).numpy()
    noise = inputs[1] if len(inputs) > 1 else inputs[0][..., :0]
    for index, wanted in enumerate(from_unit(team.actor.act(inputs[0], noise).numpy(), team.spec)):
        np.testing.assert_allclose(found[index] if discrete else found[index, :, : wanted.shape[1]], wanted, atol=1e-6)
        # One agent's graph sees and does the same as it does in the team.
        alone, own = graph_of(team, team.agents[index])
        assert own.inputs["obs"] == ["batch", team.spec.obs_dims[index]]
        obs = inputs[0][index, :, : team.spec.obs_dims[index]]
        np.testing.assert_allclose(alone(obs, *(value[index] for value in inputs[1:])).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "discrete"), [("flow", False), ("best-of-flow", False), ("greedy", True), ("diffusion", False)]
)
@pytest.mark.parametrize("agent", [None, "agent_2"])
@pytest.mark.parametrize("form", list(Format))
def test_a_file_acts_as_the_policy_at_any_batch_size(kind, discrete, agent, form, tmp_path):
    if form is Format.ONNX:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    team = team_of(kind, discrete)
    path = tmp_path / "below" / "policy"
    done = export(team, path, form, agent)
    assert done.difference <= 1e-4
    assert min(done.policy_seconds, done.exported_seconds) > 0
    run, about = opened(path, form)
    graph, signature = graph_of(team, agent)
    assert about == json.loads(signature.to_text())
    assert about["card"] == {"seed": 4}
    for batch in (1, 5):
        inputs = drawn(list(signature.inputs.values()), batch)
        wanted = graph(*map(torch.from_numpy, inputs)).numpy()
        found = run(dict(zip(signature.inputs, inputs, strict=True)))
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, atol=4e-4)


def opened(path, form):
    if form is Format.ONNX:
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes())
        about = json.loads(session.get_modelmeta().custom_metadata_map["om2p"])
        return (lambda inputs: session.run(["actions"], inputs)[0]), about
    extra = {"om2p.json": ""}
    program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    return (lambda inputs: program(*map(torch.from_numpy, inputs.values())).numpy()), json.loads(extra["om2p.json"])


@pytest.mark.parametrize(
    ("discrete", "message"), [(False, r"actions differ by .* not written$"), (True, r"chooses otherwise in \d+ of 768")]
)
def test_a_graph_that_acts_otherwise_is_not_written(discrete, message, tmp_path, monkeypatch):
    class Wrong(exporting._Torch):
        @staticmethod
        def load(content: bytes, signature: Signature):
            run = exporting._Torch.load(content, signature)
            return lambda arrays: run([arrays[0] + 0.5, *arrays[1:]])

    monkeypatch.setitem(exporting._WRITERS, Format.TORCH, Wrong)
    with pytest.raises(UserError, match=message):
        export(team_of("flow", discrete), tmp_path / "team.pt2", Format.TORCH)
    assert not list(tmp_path.iterdir())


def test_an_agent_of_another_team_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown agent 'agent_7': did you mean"):
        export(team_of("flow", False), tmp_path / "team.pt2", Format.TORCH, "agent_7")


@pytest.mark.parametrize(("name", "form"), [("a.onnx", Format.ONNX), ("a.pt2", Format.TORCH)])
def test_the_name_of_the_file_says_its_form(name, form):
    assert Format.of(Path(name)) is Format.of(Path(name), form.value) is form


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("a.pt2", "onnx", r"--out a\.pt2 must end in \.onnx for format onnx"),
        ("a.onnx", "torch", r"--out a\.onnx must end in \.pt2 for format torch"),
        ("a.bin", None, r"--out a\.bin must end in \.onnx or \.pt2$"),
    ],
)
def test_a_name_that_says_another_form_is_refused(name, form, message):
    with pytest.raises(UserError, match=message):
        Format.of(Path(name), form)


@pytest.mark.parametrize("agent", [None, "agent_1"])
def test_the_check_compares_with_the_policy_and_not_with_the_graph(agent, tmp_path, monkeypatch):
    """Weights that went to the wrong agent are no rounding."""
    team = team_of("flow", discrete=False)
    real = exporting._TeamGraph.__init__

    def swapped(self, actor, bounds):
        real(self, actor, bounds)
        self.actor = copy.deepcopy(actor)
        for parameter in self.actor.parameters():
            parameter.data = parameter.data + 0.05

    monkeypatch.setattr(exporting._TeamGraph, "__init__", swapped)
    with pytest.raises(UserError, match=r"actions differ by .* from the policy's: not written"):
        export(team, tmp_path / "team.pt2", Format.TORCH, agent)


def test_near_ties_of_values_may_fall_otherwise_and_nothing_else(tmp_path):
    """Values of hundreds differ by rounding where candidates are about as good."""
    team = team_of("best-of-flow", discrete=False)
    with torch.no_grad():
        team.actor.get_submodule("critic.net").output_layer.bias += 500.0
        team.actor.get_submodule("critic.net").output_layer.weight *= 0.05
    done = export(team, tmp_path / "policy.pt2", Format.TORCH)
    assert done.difference <= 1e-4
    expected = [np.zeros((100, 2), np.float32)]
    found = expected[0].copy()
    found[:2] = 0.5
    _, signature = graph_of(team, "agent_0")
    assert exporting._difference(expected, found, signature, 0.02) == 0.0
    found[2] = 0.5
    with pytest.raises(UserError, match="differ by"):
        exporting._difference(expected, found, signature, 0.02)
    found[1:] = 0.0
    with pytest.raises(UserError, match="differ by"):
        exporting._difference(expected, found, signature, 0.0)
