"""Updates as graphs of an accelerator: recorded once, launched many times, without the host in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Graphs(Protocol):
    """How work is recorded on a device."""

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do the work once, so that everything it allocates once is there."""
        ...

    def record(self, work: Callable[[], T], generators: Sequence[torch.Generator]) -> tuple[Callable[[], object], T]:
        """Record the work without doing it.

        Args:
            work: draws random numbers from `generators` and from no others.
            generators: every launch goes on in their streams, exactly as doing the work would.

        Returns:
            What launches it, and what the work returned: the same tensors hold new numbers after every launch.
        """
        ...


class CudaGraphs:
    """`Graphs` of CUDA."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._latest: torch.cuda.CUDAGraph | None = None

    def warm_up(self, work: Callable[[], T]) -> T:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            done = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return done

    def record(self, work: Callable[[], T], generators: Sequence[torch.Generator]) -> tuple[Callable[[], object], T]:
        graph = torch.cuda.CUDAGraph()
        if _RELEASE < (2, 14):  # newer ones find the generators themselves, and warn of each call
            for generator in generators:
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            recorded = work()
        # A pool lives as long as one of its graphs: between two stages, whose graphs share it, there would be none.
        self._latest = graph
        return graph.replay, recorded


_RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))
