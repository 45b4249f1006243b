"""Algorithms by name: one file each. Adding one is a file here, a line below and a recipe."""

from __future__ import annotations

from om2p_data.errors import unknown
from om2p_train.algorithms.base import Algorithm, Options, Stage
from om2p_train.algorithms.bc import BC
from om2p_train.algorithms.ma_cql import MACQL
from om2p_train.algorithms.ma_fql import MAFQL
from om2p_train.algorithms.ma_sfbc import MASfBC
from om2p_train.algorithms.om2p import OM2P
from om2p_train.algorithms.omar import OMAR
from om2p_train.algorithms.vgm2p import VGM2P

ALGORITHMS: dict[str, type[Algorithm]] = {
    "bc": BC,
    "om2p": OM2P,
    "ma-cql": MACQL,
    "omar": OMAR,
    "ma-fql": MAFQL,
    "ma-sfbc": MASfBC,
    "vgm2p": VGM2P,
}

__all__ = ["ALGORITHMS", "Algorithm", "Options", "Stage", "find"]


def find(name: str) -> type[Algorithm]:
    """The algorithm of that name.

    Raises:
        UserError: no such algorithm.
    """
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
