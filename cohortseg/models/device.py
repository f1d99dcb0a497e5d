"""Which device a network runs on, in which precision, and how its memory is reused."""

import ctypes
import platform
from typing import Final

import torch

from cohortseg.processors import num_processors

_MALLOPT: Final = {
    # parameter of mallopt(3): its number, bytes
    "M_MMAP_THRESHOLD": (-3, 128 * 2**20),
    "M_TRIM_THRESHOLD": (-1, 1024 * 2**20),
    "M_TOP_PAD": (-2, 64 * 2**20),
}


def find_device() -> torch.device:
    """Return the first GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_size_for(device: torch.device) -> int:
    """Return how many slices go through the network at once, unless the user says otherwise."""
    return 16 if device.type == "cuda" else 4


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 arithmetic is done in hardware, and so is faster than float32, not slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_avx512_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # it has no public name
    return has_avx512_bf16 is not None and bool(has_avx512_bf16())


def limit_threads() -> None:
    """Make PyTorch use no more threads than there are processors: it does not see the quota of a container."""
    torch.set_num_threads(min(torch.get_num_threads(), num_processors()))


def reuse_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones, in this process.

    By default it maps every block of more than 32 MiB anew, and the system zeroes and faults in its pages each time,
    which takes nearly half of a forward pass of 16 slices. Blocks of more than 128 MiB, whole volumes, still go back
    at once. Nothing happens with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for number, size in _MALLOPT.values():
            libc.mallopt(number, size)
