"""`om2p-data generate` survives kill -9 in every phase (benchmarks/interruptions.py kills it many times)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.data import app
from om2p_data import repair

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_command_killed_in_every_phase_ends_as_if_nothing_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    interruptions = importlib.import_module("interruptions")

    def complete(place) -> str:
        monkeypatch.setenv("OM2P_HOME", str(place.home))
        result = CliRunner().invoke(app, place.arguments())
        assert result.exit_code == 0, result.output
        return place.content_hash()

    expected = complete(interruptions.Place(tmp_path / "reference", transitions=20_000))
    place = interruptions.Place(tmp_path / "killed", transitions=20_000)
    saved: list[int | None] = [None]

    def saved_again() -> bool:
        return place.checkpoint() != saved[-1]

    def in_phase(phase) -> Callable[[], bool]:
        return lambda: place.phase() is phase

    moments = [saved_again, saved_again, in_phase(interruptions.Phase.ROLLOUT), in_phase(interruptions.Phase.WRITING)]
    for moment in moments:
        assert place.kill_when(moment, delay=0.02), "the command ended before it could be killed"
        saved.append(place.checkpoint())
        assert place.check_library() == "nothing"
    # The second training went on from where the first was killed, the others from where it ended.
    assert None not in saved[1:]
    assert place.left() == ["om2p/cooperative-navigation/.medium-v0.partial"]
    repair.repair(root=place.root)
    assert place.left() == []
    assert complete(place) == expected
    assert place.check_library() == "complete"
