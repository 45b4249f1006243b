"""Files of tensors: what comes back is what was written, or an error."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from om2p_data import tensor_file

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "none": torch.zeros(0, 4)}
TEXT = {"card": '{"ä": 1}', "other": ""}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.safetensors"
    tensor_file.write(path, TENSORS, TEXT)
    return path


def test_everything_comes_back(path: Path) -> None:
    tensors, text = tensor_file.read(path)
    assert text == TEXT
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert tensors[name].shape == value.shape
        assert torch.equal(tensors[name], value)


def test_safetensors_reads_it(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("a"), TENSORS["a"])
        assert json.loads(file.metadata()["om2p"]).items() >= TEXT.items()


def test_equal_content_is_equal_bytes(path: Path) -> None:
    content = path.read_bytes()
    for _ in range(20):
        tensor_file.write(path, dict(reversed(TENSORS.items())), dict(reversed(TEXT.items())))
        assert path.read_bytes() == content


def test_no_flipped_bit_gives_other_content(path: Path) -> None:
    content, unnoticed = path.read_bytes(), 0
    for index, bit in itertools.product(range(len(content)), range(8)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            tensors, text = tensor_file.read(path)
        except tensor_file.DamagedError:
            continue
        unnoticed += 1  # another spelling of the same, as in \u00E4
        assert text == TEXT
        assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert unnoticed < 3


def test_a_strangers_file_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"card": "{}"})
    with pytest.raises(tensor_file.DamagedError, match="no checksum"):
        tensor_file.read(tmp_path / "theirs.safetensors")
