"""Whether this machine has what the package needs, and what to do where it does not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from tma.errors import first_line
from tma.store import cache_dir

PACKAGES = ("torch", "transformers", "datasets", "sentence-transformers", "numpy")
OPTIONAL = ("trl", "papermill", "playwright")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ROOM = 3
"""GB of free disk that the built-in models and data take."""


class Check(NamedTuple):
    """One line of `doctor`."""

    name: str
    found: str
    """What is there, or what to do."""
    ok: bool
    needed: bool = False
    """Whether nothing works without it."""


def doctor() -> list[Check]:
    """Return what of the machine and its packages was looked at; nothing is installed or fetched.

    Only a line that is `needed` and not `ok` stands in the way: the rest is for some commands.
    """
    return [
        _python(),
        *_packages(),
        _gpu(),
        _memory(),
        *_disk(),
        _hub(),
        _chromium(),
    ]


def _python() -> Check:
    system = f"{platform.system()} {platform.machine()}"
    found = f"{platform.python_version()}, {os.cpu_count()} CPU cores, {system}"
    return Check("Python", found, sys.version_info >= (3, 11), needed=True)


def _packages() -> Iterator[Check]:
    for name in (*PACKAGES, *OPTIONAL):
        try:
            yield Check(name, version(name), ok=True, needed=name in PACKAGES)
        except PackageNotFoundError:
            optional = "" if name in PACKAGES else ", for some commands"
            missing = f"not installed{optional}: pip install {name}"
            yield Check(name, missing, ok=False, needed=name in PACKAGES)


def _gpu() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("GPU", first_line(error), ok=False)
    if not torch.cuda.is_available():
        return Check("GPU", "none: everything runs on the CPU, training small models only", ok=True)
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    found = f"{torch.cuda.get_device_name()}, {free:.0f} of {total:.0f} GB free"
    return Check("GPU", found, ok=True)


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    found = f"{free:.1f} of {total:.1f} GB free"
    if free < ROOM:
        return Check("memory", f"{found}: close other programs before training", ok=False)
    return Check("memory", found, ok=True)


def _disk() -> Iterator[Check]:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror}): set TMA_CACHE to another folder"
        yield Check("cache", found, ok=False, needed=True)
        return
    yield Check("cache", str(folder), ok=True, needed=True)
    free = shutil.disk_usage(folder).free / 2**30
    enough = free >= ROOM
    found = f"{free:.1f} GB free" + ("" if enough else f"; built-in models and data take {ROOM}")
    yield Check("disk", found, enough)


def _hub() -> Check:
    from huggingface_hub import constants, get_session, get_token

    place = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return Check("model hub", "not asked: HF_HUB_OFFLINE is set", ok=True)
    try:
        get_session().get(f"{place}/api/models?limit=1", timeout=5).raise_for_status()
    except Exception:  # each failure of a connection has a class of its own
        found = f"{place} is not reached: built-in and local models and data still work"
        return Check("model hub", found, ok=False)
    signed = "signed in" if get_token() else "no token, which gated models need (hf auth login)"
    return Check("model hub", f"{place}, {signed}", ok=True)


def _chromium() -> Check:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        return Check("chromium", "not found: only tests of the book's pages need it", ok=False)
    return Check("chromium", found, ok=True)
