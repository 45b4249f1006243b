"""Algorithms by name: one file each. Adding one is a file here, a line below and a recipe."""

from __future__ import annotations

from om2p_data.errors import unknown
from om2p_train.algorithms.base import Algorithm, Options
from om2p_train.algorithms.bc import BC
from om2p_train.algorithms.om2p import OM2P

ALGORITHMS: dict[str, type[Algorithm]] = {"bc": BC, "om2p": OM2P}

__all__ = ["ALGORITHMS", "Algorithm", "Options", "find"]


def find(name: str) -> type[Algorithm]:
    """The algorithm of that name.

    Raises:
        UserError: no such algorithm.
    """
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
