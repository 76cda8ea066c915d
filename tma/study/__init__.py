"""Runs → verdicts: what the chapters compare, with which intervals, and what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tma.study.settings import StudyConfig, parameters

__all__ = ["StudyConfig", "parameters"]


def __getattr__(name: str) -> Any:
    """Import the public names when first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tma.study import settings

    return getattr(settings, name)
