"""How a run's arithmetic is done (the `[compute]` table): what changes its speed, and its numbers by rounding only."""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterator

import torch
from pydantic import Field, PositiveInt

from om2p_data.errors import UserError
from om2p_data.recipe import Record


class Precision(enum.Enum):
    """Of the factors in matrix products; sums are float32 always. On a GPU, bf16 rounds hidden layers' outputs too."""

    FULL = "full"  # float32
    TF32 = "tf32"  # 10 bits of mantissa, where the device has it
    BF16 = "bf16"  # 7 bits, where the device has it

    @contextlib.contextmanager
    def of_products(self, device: torch.device) -> Iterator[None]:
        """Within the block, float32 matrix products on the device are computed so."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision({"full": "highest", "tf32": "high", "bf16": "medium"}[self.value])
        try:
            # "medium" is bf16 on a CPU only. No cast is kept: weights change within the block.
            cast = self is Precision.BF16 and device.type == "cuda"
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if cast else contextlib.nullcontext():
                yield
        finally:
            torch.set_float32_matmul_precision(before)


class ComputeConfig(Record):
    """The `[compute]` table."""

    precision: Precision = Field(default=Precision.FULL, description="of the factors in matrix products")
    compile: bool = Field(default=False, description="let torch.compile fuse the losses' arithmetic")
    fused: bool = Field(
        default=True, description="networks in one pass through the cache; a CPU in full precision only"
    )
    updates_per_launch: PositiveInt = Field(default=10, description="recorded into one graph; CUDA only")

    def fuses_on(self, device: torch.device) -> bool:
        """Whether networks run through the CPU's kernels there: neither bf16 nor a compiler can look into them."""
        return self.fused and device.type == "cpu" and self.precision is Precision.FULL and not self.compile


def usable_device(name: str) -> torch.device:
    """A device by name, which has been tried.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"there is no kind of device {name!r}: take cpu or cuda") from None
    try:
        torch.zeros(1, device=device).item()  # a device that cannot hand back a number is no place to train
    except (RuntimeError, AssertionError, ImportError) as error:
        first = re.split(r"\. |\n", str(error))[0] or type(error).__name__  # PyTorch goes on for pages
        raise UserError(f"device {name!r} cannot be used: {first}; 'cpu' always can") from None
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # streams, graphs and their memory are of the current one
    return device


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Give torch back its number of threads after the worlds, whose own number OpenMP takes for everybody's.

    Sums depend on it, so a run that goes on must not be in another state than one that has just evaluated.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
