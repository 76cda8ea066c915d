"""Runs → verdicts: what the chapters compare, with which intervals, and what follows."""

from importlib import import_module
from typing import Any

from tma.study.settings import StudyConfig, parameters

__all__ = ["StudyConfig", "parameters"]
_MODULES = [
    "arms",
    "claims",
    "effects",
    "exposure",
    "figures",
    "interactive",
    "report",
    "statistics",
]


def __getattr__(name: str) -> Any:
    """Import a module such as `tma.study.exposure` when it is first used."""
    if name in _MODULES:
        return import_module(f"tma.study.{name}")
    raise AttributeError(f"module 'tma.study' has no attribute {name!r}")
