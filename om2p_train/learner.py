"""One update: optimisers, gradients, target averaging. The only file that knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam

from om2p_data.checkpoints import optimizer_state, restore_optimizer
from om2p_data.recipe import Record
from om2p_data.stacked import polyak
from om2p_train.algorithms import Algorithm, Stage
from om2p_train.algorithms.base import Noise
from om2p_train.batches import Batch, Transitions
from om2p_train.capture import Graphs
from om2p_train.compute import ComputeConfig
from om2p_train.streams import SeedStreams

_WARM_UPS = 3  # updates taken one by one before a stage is recorded: they allocate what is allocated once


class OptimizerConfig(Record):
    """What stands around the losses."""

    learning_rate: float = Field(gt=0, description="of Adam")
    critic_learning_rate: float | None = Field(default=None, gt=0, description="the critic's own; left out: the same")
    batch_size: int = Field(gt=0, description="transitions an update, for every learner")
    rho: float = Field(gt=0, le=1, description="share of the source in every target average")
    max_gradient: float | None = Field(
        default=None, gt=0, description="bound on the norm of each learner's gradient; left out: none"
    )


class Learner:
    """Draws a batch and its noise, and takes one step of critic and actor.

    Args:
        algorithm: the losses.
        data: where batches come from.
        streams: sampling streams, one a seed.
        config: optimiser settings.
        updates: of the whole run.
        compute: how the arithmetic is done.
        graphs: records updates, so that many run at one launch; None takes them one by one.

    Attributes:
        updates: taken so far.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        data: Transitions,
        streams: SeedStreams,
        config: OptimizerConfig,
        updates: int,
        compute: ComputeConfig | None = None,
        graphs: Graphs | None = None,
    ):
        self._algorithm = algorithm
        self._data = data
        self._streams = streams
        self._config = config
        self._compute = compute or ComputeConfig()
        self._optimizers = {
            name: _adam(module, rate)
            for name, module, rate in (
                ("critic", algorithm.critic, config.critic_learning_rate or config.learning_rate),
                ("actor", algorithm.actor, config.learning_rate),
            )
            if module is not None
        }
        if self._compute.fuses_on(streams.device):
            from om2p_data.fused import fuse  # with a compiler and BLAS, which an accelerator has no use for

            fuse(algorithm)
        compiled = torch.compile if self._compute.compile else _as_it_is
        self._losses = {"critic": compiled(algorithm.critic_loss), "actor": compiled(algorithm.actor_loss)}
        self._targets = [value for target, _ in algorithm.targets for value in target.parameters()]
        self._sources = [value for _, source in algorithm.targets for value in source.parameters()]
        self._stages = algorithm.stages(updates)
        self._graphs = graphs
        self._recorded: _Recorded | None = None
        self.updates = 0

    def update(self, most: int = 1) -> dict[str, Tensor]:
        """One update of all K learners, or with recorded graphs a launch of up to `most`; `updates` counts them.

        Returns:
            Losses of the last one by name, [K], still on the device: reading them is what costs a synchronisation, and
            they hold until the next call. A loss that is not trained now is 0.
        """
        stage, left = self._stage()
        with self._compute.precision.of_products(self._streams.device):
            count, losses = self._launch(stage, min(most, left)) if self._graphs else (1, self._take(stage))
        self.updates += count
        return losses

    def _launch(self, stage: Stage, most: int) -> tuple[int, dict[str, Tensor]]:
        graphs = self._graphs
        assert graphs is not None
        if self._recorded is None or self._recorded.stage is not stage:
            self._recorded = _Recorded(stage)
        recorded = self._recorded
        if recorded.warm_ups > 0:
            recorded.warm_ups -= 1
            return 1, graphs.warm_up(lambda: self._take(stage))
        count = self._compute.updates_per_launch if most >= self._compute.updates_per_launch else 1
        if count not in recorded.by_count:
            recorded.by_count[count] = graphs.record(lambda: self._take_many(stage, count), self._streams.generators)
        launch, losses = recorded.by_count[count]
        launch()
        return count, losses

    def _take_many(self, stage: Stage, count: int) -> dict[str, Tensor]:
        for _ in range(count - 1):
            self._take(stage)
        return self._take(stage)

    def _take(self, stage: Stage) -> dict[str, Tensor]:
        """One update: nothing in it depends on the host."""
        algorithm, size = self._algorithm, self._config.batch_size
        batch = self._data.sample(self._streams, size)
        noise = algorithm.draw(self._streams, size)
        losses = {f"{name}_loss": batch.rewards.new_zeros(len(batch.rewards)) for name in self._optimizers}
        if stage.critic:
            losses["critic_loss"] = self._step("critic", batch, noise)
        if stage.actor:
            if algorithm.critic is not None:  # the guidance needs the gradient of Q by the action only
                algorithm.critic.requires_grad_(False)
            losses["actor_loss"] = self._step("actor", batch, noise)
            if algorithm.critic is not None:
                algorithm.critic.requires_grad_(True)
        if self._targets:
            polyak(self._targets, self._sources, self._config.rho)
        return losses

    def state(self) -> dict[str, Any]:
        """All that the next update depends on, besides data and settings."""
        return {
            "updates": self.updates,
            "weights": dict(self._algorithm.named_parameters()),
            "buffers": dict(self._algorithm.named_buffers()),
            "optimizers": {name: optimizer_state(optimizer) for name, optimizer in self._optimizers.items()},
            "streams": self._streams.state(),
        } | ({} if self._data.labels is None else {"behavior_teams": self._data.teams, "labels": self._data.labels})

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken.

        Raises:
            KeyError, RuntimeError: the state is of another algorithm or of other sizes.
        """
        for name, parameter in self._algorithm.named_parameters():
            parameter.copy_(state["weights"][name])
        for name, buffer in self._algorithm.named_buffers():
            value = state["buffers"][name].to(buffer.device)
            owner, _, last = name.rpartition(".")
            setattr(self._algorithm.get_submodule(owner), last, value)
        for name, optimizer in self._optimizers.items():
            restore_optimizer(optimizer, state["optimizers"][name])
        self._streams.restore(state["streams"])
        self.updates = int(state["updates"])

    def _stage(self) -> tuple[Stage, int]:
        """The stage of the next update and how many it has left; on its first one, the stage is prepared."""
        begin = 0
        for stage in self._stages:
            if self.updates < begin + stage.updates:
                if self.updates == begin and stage.prepare is not None:
                    stage.prepare(self._data, self._streams)
                return stage, begin + stage.updates - self.updates
            begin += stage.updates
        raise ValueError(f"all {begin} updates are taken")

    def _step(self, name: str, batch: Batch, noise: Noise) -> Tensor:
        optimizer = self._optimizers[name]
        loss = self._losses[name](batch, noise)
        optimizer.zero_grad()
        loss.sum().backward()  # no learner's loss touches another's weights, so the sum keeps their gradients apart
        if self._config.max_gradient is not None:
            _clip(optimizer, len(loss), self._config.max_gradient)
        optimizer.step()
        return loss.detach()


class _Recorded:
    """Launches of one stage's updates: by how many updates each takes, what launches it and the losses it fills."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.warm_ups = _WARM_UPS
        self.by_count: dict[int, tuple[Callable[[], object], dict[str, Tensor]]] = {}


def _as_it_is(function: Callable[[Batch, Noise], Tensor]) -> Callable[[Batch, Noise], Tensor]:
    return function


def _adam(module: nn.Module, learning_rate: float) -> Adam:
    on_device = next(module.parameters()).is_cuda  # counting steps there is what lets an update be recorded
    return Adam(module.parameters(), learning_rate, fused=True, capturable=on_device)


def _clip(optimizer: Adam, learners: int, bound: float) -> None:
    """Scale the gradient of each learner to a norm of at most `bound`."""
    gradients = [value.grad for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
    # A critic has two rows of weights a learner.
    by_learner = [gradient.view(learners, -1) for gradient in gradients]
    norm = torch.stack([gradient.square().sum(1) for gradient in by_learner]).sum(0).sqrt()  # [K]
    scale = (bound / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp(max=1.0).unsqueeze(1)
    for gradient in by_learner:
        gradient.mul_(scale)
