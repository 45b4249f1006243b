"""Random streams, one a seed: what a seed draws does not depend on the seeds stacked beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class SeedStreams:
    """S generators whose draws are concatenated in the leading dimension.

    Args:
        seeds: one a stream.
        purpose: streams for different purposes (initialisation, sampling, evaluation) are independent of each other.
        device: where draws are made.
    """

    def __init__(self, seeds: Sequence[int], purpose: int, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.generators = [
            torch.Generator(self.device).manual_seed(int(np.random.SeedSequence((seed, purpose)).generate_state(1)[0]))
            for seed in seeds
        ]

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1), [S * shape[0], ...]."""
        return self._draw(lambda generator: torch.randn(shape, generator=generator, device=self.device))

    def uniform(self, *shape: int) -> Tensor:
        """U[0, 1), [S * shape[0], ...]."""
        return self._draw(lambda generator: torch.rand(shape, generator=generator, device=self.device))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), [S * shape[0], ...]."""
        return self._draw(lambda generator: torch.randint(high, shape, generator=generator, device=self.device))

    def state(self) -> list[Tensor]:
        """Where every stream stands, to go on from there."""
        return [generator.get_state() for generator in self.generators]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go on from where `state` was taken."""
        for generator, one in zip(self.generators, state, strict=True):
            generator.set_state(one)

    def _draw(self, one: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.cat([one(generator) for generator in self.generators])


INITIALISATION, SAMPLING, EVALUATION, TELLING_APART = range(4)
