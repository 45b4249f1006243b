"""safetensors files that notice damage: tensors and text, with a checksum over both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from om2p_data.storage import write_whole

# One entry for all: safetensors writes several in an order of its own at every call, and equal content is to be equal
# bytes.
_ENTRY, _CHECKSUM, _METADATA = "om2p", "sha256", "__metadata__"
_PREFIX = 8  # bytes of the header's length, little-endian


class DamagedError(ValueError):
    """A file is no file of tensors, or not the one that was written."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text; killed at any moment, the file of before or this one is there.

    Raises:
        OSError: the file cannot be written.
    """
    # Not safetensors' own file writer: where the disk is full it raises no OSError.
    checksum = _checksum(*_parts(to_bytes(dict(tensors))), metadata)
    entry = json.dumps({_CHECKSUM: checksum, **metadata}, sort_keys=True)
    content = to_bytes(dict(tensors), metadata={_ENTRY: entry})
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write` wrote.

    Raises:
        DamagedError: the file is something else, or has changed since.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        header, body = _parts(content)
        metadata = json.loads(header.pop(_METADATA, {}).get(_ENTRY, "{}"))
        expected = metadata.pop(_CHECKSUM, None)
        tensors = from_bytes(content)
    except (ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise DamagedError(f"no file of ours, or damaged: {type(error).__name__}: {error}") from error
    if expected is None:
        raise DamagedError("it has no checksum, so it is no file of ours")
    if expected != _checksum(header, body, metadata):
        raise DamagedError("its checksum is wrong")
    return tensors, metadata


def _parts(content: bytes) -> tuple[dict, memoryview]:
    """Header and tensors of a file's content."""
    size = int.from_bytes(content[:_PREFIX], "little")
    view = memoryview(content)
    return json.loads(bytes(view[_PREFIX : _PREFIX + size])), view[_PREFIX + size :]


def _checksum(header: Mapping, body: memoryview, metadata: Mapping[str, str]) -> str:
    """Of names and sizes of the tensors, of the tensors, and of the text."""
    digest = hashlib.sha256(json.dumps([header, dict(metadata)], sort_keys=True).encode())
    digest.update(body)
    return digest.hexdigest()
