"""One update: optimisers, gradients, target averaging. The only file that knows them."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam

from om2p_data.recipe import Record
from om2p_data.stacked import polyak
from om2p_train.algorithms import Algorithm
from om2p_train.batches import Transitions
from om2p_train.streams import SeedStreams


class OptimizerConfig(Record):
    """What stands around the losses."""

    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    rho: float = Field(gt=0, le=1, description="share of the source in every target average")


class Learner:
    """Draws a batch and its noise, and takes one step of critic and actor.

    Args:
        algorithm: the losses.
        data: where batches come from.
        streams: sampling streams, one a seed.
        config: optimiser settings.
    """

    def __init__(self, algorithm: Algorithm, data: Transitions, streams: SeedStreams, config: OptimizerConfig):
        self._algorithm = algorithm
        self._data = data
        self._streams = streams
        self._config = config
        self._actor_optimizer = _adam(algorithm.actor, config)
        self._critic_optimizer = _adam(algorithm.critic, config) if algorithm.critic is not None else None
        self._targets = [value for target, _ in algorithm.targets for value in target.parameters()]
        self._sources = [value for _, source in algorithm.targets for value in source.parameters()]

    def update(self) -> dict[str, Tensor]:
        """One update of all K learners.

        Returns:
            Losses by name, [K], still on the device: reading them is what costs a synchronisation.
        """
        algorithm, size = self._algorithm, self._config.batch_size
        batch = self._data.sample(self._streams, size)
        noise = algorithm.draw(self._streams, size)
        losses = {}
        if self._critic_optimizer is not None and algorithm.critic is not None:
            loss = algorithm.critic_loss(batch, noise)
            _step(self._critic_optimizer, loss)
            losses["critic_loss"] = loss.detach()
            # The guidance needs the gradient of Q by the action only.
            algorithm.critic.requires_grad_(False)
        loss = algorithm.actor_loss(batch, noise)
        _step(self._actor_optimizer, loss)
        losses["actor_loss"] = loss.detach()
        if algorithm.critic is not None:
            algorithm.critic.requires_grad_(True)
        if self._targets:
            polyak(self._targets, self._sources, self._config.rho)
        return losses


def _adam(module: nn.Module, config: OptimizerConfig) -> Adam:
    return Adam(module.parameters(), config.learning_rate, fused=True)


def _step(optimizer: Adam, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.sum().backward()  # no learner's loss touches another's weights, so the sum keeps their gradients apart
    optimizer.step()
