"""Freed memory is kept while training, and given back after it."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tma.heap import freed_memory_kept

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="the setting is glibc's",
)
BYTES = 64 * 2**20
PAGES = BYTES // resource.getpagesize()


def faults_of_a_buffer(size: int = BYTES) -> int:
    """Page faults of filling a buffer that is freed again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


AGAIN = """
from tests.test_heap import BYTES, faults_of_a_buffer
from tma.heap import freed_memory_kept
with freed_memory_kept():
    print(faults_of_a_buffer())
    print(faults_of_a_buffer(BYTES * 3 // 4))  # smaller: its place may be aligned otherwise
print(faults_of_a_buffer())
"""


def test_a_buffer_that_was_freed_is_used_again() -> None:
    # In a process of its own: the heap of one that has run a thousand tests is full of holes.
    root = Path(__file__).parent.parent
    shown = subprocess.check_output([sys.executable, "-c", AGAIN], cwd=root, text=True)
    first, again, after = map(int, shown.split())
    assert first > PAGES * 9 // 10
    assert again < PAGES // 100
    assert after > PAGES * 9 // 10


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


def test_after_training_the_memory_is_given_back() -> None:
    with freed_memory_kept():
        faults_of_a_buffer()
        held = resident_pages()
    assert held - resident_pages() > PAGES * 9 // 10


def test_the_memory_is_given_back_after_an_error_too() -> None:
    with pytest.raises(ValueError, match="stop"), freed_memory_kept():
        faults_of_a_buffer()
        held = resident_pages()
        raise ValueError("stop")
    assert held - resident_pages() > PAGES * 9 // 10
