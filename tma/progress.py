"""Progress: a bar in a terminal or a notebook; in a log file a plain line every half minute."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS = 30
"""Least time between two lines of a log file."""
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
"""What a log file is told; a drawing of a bar would say nothing more."""


class _Lines(tqdm):  # type: ignore[type-arg]  # not generic when it runs
    """What tqdm would draw over the line before, as lines that follow each other."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line; `msg` is given only to clear what a terminal shows."""
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Write the last line, once, without the empty one that tqdm would leave after it."""
        self.refresh()
        self.leave = False
        super().close()


def progress(steps: Iterable[Item], seconds: float = 0.1, **given: Any) -> tqdm[Item]:
    """Return what iterates over steps and shows how far it is.

    Args:
        steps: what is to be done.
        seconds: least time between two drawings of a bar.
        given: settings of tqdm.
    """
    if _draws(sys.stderr):
        return tqdm(steps, mininterval=seconds, **given)
    return _Lines(steps, mininterval=SECONDS, maxinterval=SECONDS, bar_format=LINE, **given)


def _draws(stream: TextIO) -> bool:
    """Return whether a line can be written anew: in a terminal, and in a notebook, whose stream
    says that it is none.
    """
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")
