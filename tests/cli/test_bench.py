"""om2p-train bench: what it prints and writes."""

from __future__ import annotations

import json

import pytest


def test_it_writes_what_it_prints(run, tmp_path):
    out = tmp_path / "bench.json"
    small = ["--scale", "cpu", "--set", "network.hidden=[8]", "--set", "optimizer.batch_size=8"]
    short = ["--repeats", "1", "--seconds", "0.01", "--quiet"]
    result = run("om2p-train", "bench", "--recipes", "om2p", "--seeds", "1,2", *small, *short, "--out", out)
    assert result.code == 0, result.err
    written = json.loads(out.read_text())["rows"]
    rows, acted = ([row for row in written if key in row] for key in ("recipe", "policy"))
    assert [(row["recipe"], row["seeds"]) for row in rows] == [("om2p", 1), ("om2p", 2)]
    for row in rows:
        assert row["ms_per_update"] == pytest.approx(1e3 / row["updates_per_second"])
        assert row["of_limit"] == pytest.approx(row["least_ms"] / row["ms_per_update"])
        assert row["ms_with_paper_evaluation"] > row["ms_per_update"] > 0
        assert row["memory_mb"] >= 0
    assert [{"plain_ms", "jax_ms"} <= row.keys() for row in rows] == [True, False]
    assert f"{rows[0]['times_plain']:.3g}" in result.out
    assert "Table 2" in result.out
    assert [row["environments"] for row in acted] == [*[1] * 4, *[1000] * 4]
    alone = {row["policy"]: row["ms"] for row in acted[:4]}
    assert list(alone) == ["one step", "one step, best of 8 (OM2P)", "flow, 10 steps", "diffusion, 16 candidates"]
    assert min(alone, key=lambda policy: alone[policy]) == "one step"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--scale", "huge"], "scale"),
        (["--precision", "full,fp8"], "fp8"),
        (["--seeds", "0"], "--seeds takes numbers of seeds"),
        (["--recipes", "bc,nobody"], "nobody"),
        (["--env", "moon"], "moon"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_input_is_one_line(run, words, line):
    result = run("om2p-train", "bench", *words)
    assert result.code == 2
    assert line in result.err
    assert len(result.err.splitlines()) == 1
