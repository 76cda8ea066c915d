"""One makes a run, the others wait: processes that train together, and jobs that want the same run.

The processes of one job do the same in the same sequence, so the main one decides and tells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from tma.store import locked

if TYPE_CHECKING:
    from accelerate import PartialState

log = logging.getLogger(__name__)

_TURN = 5.0
"""Seconds that processes wait for the lock before they hear from each other."""


def processes() -> PartialState:
    """Return what knows of the processes of this job, and of the device of this one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def said(value: bool) -> bool:
    """Return what the main process says, in every process: they must do the same."""
    from accelerate.utils import broadcast_object_list

    processes()  # begins the exchange, on the CPU where there is no GPU
    heard = [value]
    broadcast_object_list(heard)
    return heard[0]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run in the main process; the others wait for it in short turns.

    One long wait would end them with the timeout of their process group.

    Raises:
        StateError: the lock cannot be written.
    """
    main = processes().is_main_process
    with ExitStack() as held:
        seconds, got = 0.0, False
        while not got:
            if main:
                with suppress(Timeout):
                    held.enter_context(locked(folder, seconds))
                    got = True
            got = said(got)
            if not got and not seconds and main:
                log.warning("waiting for another process that makes the run %s", folder.name)
            seconds = _TURN
        yield
