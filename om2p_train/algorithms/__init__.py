"""Algorithms by name: one file each. Adding one is a file, here (with a line below) or anywhere, and a recipe."""

from __future__ import annotations

from om2p_data.errors import UserError, unknown
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
    """The algorithm of that name, or at `package.module:class` (the working directory is searched too).

    Raises:
        UserError: no such algorithm.
    """
    if ":" in name:
        from om2p_data.playing import load  # brings the environments, which our own algorithms need not wait for

        found = load(name, "algorithm")
        if not (isinstance(found, type) and issubclass(found, Algorithm)):
            raise UserError(f"algorithm {name} is no subclass of om2p_train.algorithms.Algorithm")
        return found
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
