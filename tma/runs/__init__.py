"""Settings → a finished run, by content; `tma.runs.published` and the others load when used."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name not in ("config", "execute", "parallel", "published", "store"):
        raise AttributeError(f"module 'tma.runs' has no attribute {name!r}")
    return import_module(f"tma.runs.{name}")
