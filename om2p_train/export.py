"""Trained teams as graphs that run without this package: ONNX, and programs of `torch.export`.

A graph takes raw observations and the action noise, and gives actions as the environment takes them. All that its user
must know besides is a JSON table inside the file (`Signature`).
"""

from __future__ import annotations

import abc
import contextlib
import enum
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from om2p_data.behavior.policy import one_torch_thread
from om2p_data.errors import UserError, unknown
from om2p_data.storage import reason, write_whole
from om2p_train.actors import ACTORS, Actor
from om2p_train.networks import NetworkConfig
from om2p_train.policy import TeamPolicy
from om2p_train.spaces import action_bounds
from om2p_train.streams import EVALUATION, INITIALISATION, SeedStreams
from om2p_train.team import Team

METADATA = "om2p"  # name of the JSON table in an ONNX model's metadata; `om2p.json` in a .pt2
TOLERANCE = 1e-4  # by which an action in [-1, 1] may differ from the policy's; choices may not

_CHECKED = 256  # observations of every agent that are compared
_TIMED, _LONGEST = 200, 0.5  # runs that the median time is of, or as many as there are in so many seconds
_MOST_TIES = 0.02  # share of choices among candidates that may fall otherwise: values that differ by rounding alone
_OBS, _NOISE, _ACTIONS = "obs", "noise", "actions"


class Format(enum.Enum):
    """What an exported policy is written as."""

    ONNX = "onnx"
    TORCH = "torch"

    @property
    def suffix(self) -> str:
        """Of its files."""
        return {Format.ONNX: ".onnx", Format.TORCH: ".pt2"}[self]

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> Format:
        """What a file's name ends in, or what is asked for by name.

        Raises:
            UserError: no such form, or the name of the file says another one.
        """
        forms = {form.value: form for form in cls}
        if name is not None and name not in forms:
            raise unknown("format", name, forms)
        said = next((form for form in cls if form.suffix == path.suffix), None)
        wanted = said if name is None else forms[name]
        if wanted is None or wanted.suffix != path.suffix:
            ends = wanted.suffix if wanted is not None else " or ".join(form.suffix for form in cls)
            raise UserError(f"--out {path} must end in {ends}{'' if name is None else f' for format {name}'}")
        return wanted


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, batch size B, N agents padded to the largest; one agent's has no N and no padding.

    Attributes:
        agents: whose actions these are, in the order of the leading dimension; one, if one was exported.
        single: whether one agent was exported.
        inputs: name and shape of every input, "batch" for B; `noise` is N(0, 1), absent where none is needed.
        output: shape of `actions`: float32 within the bounds, or int64 choices counted from 0.
        discrete: whether actions are choices.
        obs_dims, act_dims: of every agent.
        action_low, action_high: bounds by agent and component, None for -1 and 1.
        noise_size: Z, how many normal numbers an action takes.
        card: where the policy comes from.
    """

    agents: Sequence[str]
    single: bool
    inputs: dict[str, Sequence[int | str]]
    output: Sequence[int | str]
    discrete: bool
    obs_dims: Sequence[int]
    act_dims: Sequence[int]
    action_low: Sequence[Sequence[float]] | None
    action_high: Sequence[Sequence[float]] | None
    noise_size: int
    card: dict[str, Any]

    def to_text(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        signature: of the graph.
        difference: largest difference to the policy's actions, which are measured in [-1, 1]; 0 for choices. Where the
            policy takes the best of several candidates, of all but the few whose values are all but equal.
        policy_seconds, exported_seconds: median time of one observation on one thread; the policy takes every agent's.
    """

    path: Path
    signature: Signature
    difference: float
    policy_seconds: float
    exported_seconds: float


class _TeamGraph(nn.Module):
    """obs [N, B, O] and noise [N, B, Z] -> actions [N, B, A] within their bounds, or choices int64 [N, B]."""

    low: Tensor
    high: Tensor

    def __init__(self, actor: Actor, bounds: tuple[np.ndarray, np.ndarray] | None):
        super().__init__()
        self.actor = actor
        self.bounded = bounds is not None
        if bounds is not None:
            for name, side in zip(("low", "high"), bounds, strict=True):
                self.register_buffer(name, torch.from_numpy(side).unsqueeze(1))  # [N, 1, A]

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = obs[..., :0]
        actions = self.actor.act(obs, noise)
        if self.actor.space.discrete:
            return actions.argmax(-1)
        if not self.bounded:
            return actions
        moved = self.low + (actions + 1.0) / 2.0 * (self.high - self.low)
        return self.actor.space.trim(torch.minimum(torch.maximum(moved, self.low), self.high))


class _AgentGraph(nn.Module):
    """One agent's: obs [B, O_i] and noise [B, Z] -> actions [B, A_i], or choices int64 [B]."""

    def __init__(self, team: _TeamGraph, obs_dim: int, act_dim: int):
        super().__init__()
        self.team = team
        self._padding = team.actor.team.obs_dim - obs_dim
        self._act_dim = act_dim

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        padded = F.pad(obs, (0, self._padding)).unsqueeze(0)
        actions = self.team(padded, None if noise is None else noise.unsqueeze(0)).squeeze(0)
        return actions if self.team.actor.space.discrete else actions[..., : self._act_dim]


def graph_of(policy: TeamPolicy, agent: str | None = None) -> tuple[nn.Module, Signature]:
    """What is exported, as a module, and what it takes and gives.

    Args:
        policy: the team.
        agent: one of its agents, or None for all of them.

    Raises:
        UserError: no such agent.
    """
    spec, actor = policy.spec, policy.actor
    bounds, low, high = action_bounds(spec), spec.action_low, spec.action_high
    if agent is None:
        graph: nn.Module = _TeamGraph(actor, bounds)
        lead: list[int | str] = [spec.num_agents, "batch"]
        index, obs_dim, act_dim = slice(None), spec.obs_dim, spec.act_dim
    else:
        if agent not in spec.agents:
            raise unknown("agent", agent, spec.agents)
        place = spec.agents.index(agent)
        index = slice(place, place + 1)
        own = None if bounds is None else (bounds[0][index], bounds[1][index])
        obs_dim, act_dim = spec.obs_dims[place], spec.act_dims[place]
        graph = _AgentGraph(_TeamGraph(_one_agent(actor, place), own), obs_dim, act_dim)
        lead = ["batch"]
    noise = {_NOISE: [*lead, actor.noise_dim]} if actor.noise_dim else {}
    return graph.eval(), Signature(
        agents=spec.agents[index],
        single=agent is not None,
        inputs={_OBS: [*lead, obs_dim], **noise},
        output=lead if actor.space.discrete else [*lead, act_dim],
        discrete=actor.space.discrete,
        obs_dims=spec.obs_dims[index],
        act_dims=spec.act_dims[index],
        action_low=None if bounds is None or low is None else low[index],
        action_high=None if bounds is None or high is None else high[index],
        noise_size=actor.noise_dim,
        card=policy.card,
    )


def export(policy: TeamPolicy, path: Path, form: Format, agent: str | None = None) -> Exported:
    """Write a team, or one of its agents, as a graph; it is compared with the policy first.

    Args:
        policy: the team.
        path: of the file.
        form: ONNX or `torch.export`.
        agent: one agent to write alone.

    Raises:
        UserError: no such agent, a library is missing, the graph does not act as the policy does, or the file cannot be
            written.
    """
    graph, signature = graph_of(policy, agent)
    writer = _WRITERS[form]
    with torch.no_grad(), one_torch_thread():
        inputs, expected, _ = _case(policy, signature, _CHECKED)
        content = writer.write(graph, inputs, signature)
        run = writer.load(content, signature)
        ties = _MOST_TIES if policy.actor.takes_the_best else 0.0
        difference = _difference(expected, run([value.numpy() for value in inputs]), signature, ties)
        one, _, act = _case(policy, signature, 1)
        arrays = [value.numpy() for value in one]
        policy_seconds, exported_seconds = _median_time(act), _median_time(lambda: run(arrays))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    return Exported(path, signature, difference, policy_seconds, exported_seconds)


Run = Callable[[list[np.ndarray]], np.ndarray]


class _Writer(abc.ABC):
    """A form to write graphs in."""

    @staticmethod
    @abc.abstractmethod
    def write(graph: nn.Module, inputs: list[Tensor], signature: Signature) -> bytes:
        """The file's content.

        Raises:
            UserError: a library is missing.
        """

    @staticmethod
    @abc.abstractmethod
    def load(content: bytes, signature: Signature) -> Run:
        """What runs the content, as its user will: arrays in the order of the inputs -> actions."""


class _Onnx(_Writer):
    @staticmethod
    def write(graph: nn.Module, inputs: list[Tensor], signature: Signature) -> bytes:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f"ONNX needs the package {error.name}: pip install 'om2p[onnx]'") from None
        with _quietly():
            program = torch.onnx.export(
                graph,
                tuple(inputs),
                input_names=list(signature.inputs),
                output_names=[_ACTIONS],
                dynamic_shapes=_dynamic(signature),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        model.metadata_props.add(key=METADATA, value=signature.to_text())
        return model.SerializeToString()

    @staticmethod
    def load(content: bytes, signature: Signature) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = list(signature.inputs)
        return lambda arrays: np.asarray(session.run([_ACTIONS], dict(zip(names, arrays, strict=True)))[0])


class _Torch(_Writer):
    @staticmethod
    def write(graph: nn.Module, inputs: list[Tensor], signature: Signature) -> bytes:
        with _quietly():
            program = torch.export.export(graph, tuple(inputs), dynamic_shapes=_dynamic(signature))
            file = io.BytesIO()
            torch.export.save(program, file, extra_files={f"{METADATA}.json": signature.to_text()})
        return file.getvalue()

    @staticmethod
    def load(content: bytes, signature: Signature) -> Run:
        del signature
        with _quietly():
            module = torch.export.load(io.BytesIO(content)).module()
        return lambda arrays: module(*map(torch.from_numpy, arrays)).numpy()


_WRITERS: dict[Format, type[_Writer]] = {Format.ONNX: _Onnx, Format.TORCH: _Torch}


def _one_agent(actor: Actor, place: int) -> Actor:
    """The networks of one agent, padded as they are in the team."""
    own = dict(actor.architecture)
    team, network = Team.from_json(own.pop("team")), NetworkConfig.model_validate_json(json.dumps(own.pop("network")))
    alone = replace(team, act_dims=(team.act_dim,))
    agent = ACTORS[actor.kind](SeedStreams([0], INITIALISATION), alone, network, **own)
    sizes = {name: len(value) // team.num_agents for name, value in actor.state_dict().items()}
    agent.load_state_dict(
        {name: value[place * sizes[name] :][: sizes[name]] for name, value in actor.state_dict().items()}
    )
    agent.space.ragged = actor.space.ragged
    agent.space.mask.copy_(actor.space.mask[place : place + 1])
    return agent.requires_grad_(False)


def _case(
    policy: TeamPolicy, signature: Signature, batch: int
) -> tuple[list[Tensor], list[np.ndarray], Callable[[], object]]:
    """What a graph is tried on.

    Observations are spread as the training data were, as far as the policy knows that; the noise is what the policy
    itself draws for them.

    Returns:
        The graph's inputs; the policy's actions there, of every agent of the signature, [B, A_i] or choices [B]; and
        what lets the policy act there again.
    """
    spec, actor = policy.spec, policy.actor
    live = TeamPolicy(actor, policy.environment, policy.card, seed=0)
    generator = torch.Generator().manual_seed(0)
    obs = actor.obs_mean + actor.obs_scale * torch.randn(spec.num_agents, batch, spec.obs_dim, generator=generator)
    for row, size in zip(obs, spec.obs_dims, strict=True):
        row[:, size:] = 0.0
    by_agent = {agent: row[:, :size].numpy() for agent, row, size in zip(spec.agents, obs, spec.obs_dims, strict=True)}
    noise = SeedStreams([0], EVALUATION).normal(spec.num_agents, batch, actor.noise_dim)
    actions = live.act(by_agent)
    inputs = [obs, noise] if actor.noise_dim else [obs]
    if signature.single:
        place = spec.agents.index(signature.agents[0])
        own, *rest = (value[place] for value in inputs)
        inputs = [own[:, : signature.obs_dims[0]], *rest]
    return inputs, [actions[agent] for agent in signature.agents], lambda: live.act(by_agent)


def _dynamic(signature: Signature) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1)
    return tuple({list(shape).index("batch"): batch} for shape in signature.inputs.values())


def _difference(expected: Sequence[np.ndarray], found: np.ndarray, signature: Signature, ties: float) -> float:
    """The largest difference of a graph's actions to the policy's, but for a share `ties` of each agent's actions.

    Raises:
        UserError: it is too large.
    """
    rows = [found] if signature.single else list(found)
    if signature.discrete:
        differing = sum(int((row != wanted).sum()) for row, wanted in zip(rows, expected, strict=True))
        if differing > ties * found.size:
            raise UserError(f"the exported policy chooses otherwise in {differing} of {found.size} cases: not written")
        return 0.0
    difference = 0.0
    for index, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
        half = np.ones(wanted.shape[1])
        if signature.action_low is not None and signature.action_high is not None:
            half = (np.array(signature.action_high[index]) - np.array(signature.action_low[index])) / 2.0
        by_action = np.sort((np.abs(row[:, : wanted.shape[1]] - wanted) / half).max(1))
        difference = max(difference, float(by_action[: len(by_action) - int(ties * len(by_action))].max()))
    if not difference <= TOLERANCE:
        raise UserError(f"the exported policy's actions differ by {difference:.1e} from the policy's: not written")
    return difference


def _median_time(run: Callable[[], object]) -> float:
    times: list[float] = []
    while len(times) < _TIMED and sum(times) < _LONGEST:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """PyTorch's exporters report on themselves at length; what matters here is checked by numbers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
