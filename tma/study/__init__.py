"""Runs → verdicts: what the chapters compare, with which intervals, and what follows."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from tma.study.settings import StudyConfig, parameters

__all__ = ["StudyConfig", "parameters"]


def __getattr__(name: str) -> ModuleType:
    """Import a module such as `tma.study.exposure` when it is first used."""
    if find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
