"""What glibc's allocator does with freed memory while a model is trained.

A step frees buffers of many megabytes and asks for them again. Left alone, the allocator gives each
back to the system, which has to clear the pages anew: on two CPU cores up to a quarter of a step.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# From malloc.h: the number of a setting, what holds while training, what holds otherwise.
_TRIM_THRESHOLD = (-1, 2**31 - 1, 128 * 1024)
_MMAP_MAX = (-4, 0, 65536)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed inside for the next request; return it to the system at the end.

    Does nothing where the C library is not glibc. No number changes by it, nor the most memory that
    is held at once; after it the settings are those that glibc starts with.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    # mallopt is elsewhere too, with other meanings; this name is in glibc alone.
    glibc = library is not None and hasattr(library, "gnu_get_libc_version")
    if library is None or not glibc:
        yield
        return
    for number, held, _ in (_TRIM_THRESHOLD, _MMAP_MAX):
        library.mallopt(number, held)
    try:
        yield
    finally:
        for number, _, usual in (_TRIM_THRESHOLD, _MMAP_MAX):
            library.mallopt(number, usual)
        # Steps of ever other lengths leave the heap full of holes that only this gives back.
        library.malloc_trim(0)
