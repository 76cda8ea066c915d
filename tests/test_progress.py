from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tma import progress

SCRIPT = """
import sys, time
from tma.progress import progress
bar = progress(range(3), 0, desc="random", unit="step", total=5, initial=2)
for step in bar:
    bar.set_postfix(loss=f"{step}.500", rate="9.1 inst/s", refresh=False)
for step in progress(range(3), disable=True):
    pass
"""


def test_a_log_file_gets_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("w") as stderr:
        subprocess.run([sys.executable, "-c", SCRIPT], stderr=stderr, check=True)
    lines = log.read_bytes().decode().splitlines(keepends=True)
    assert [re.sub(r"\d\d:\d\d<|[\d.]+step/s", "#", line) for line in lines] == [
        "random: 2/5 [#?, ?step/s]\n",
        "random: 5/5 [#00:00, #, loss=2.500, rate=9.1 inst/s]\n",
    ]


def test_a_log_file_is_told_of_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        """A file that a program writes its log to."""

        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return False

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "SECONDS", 0)
    for _ in progress.progress(range(3), desc="x", miniters=1):
        pass
    assert [line.split()[1] for line in stream.text.splitlines()] == [
        "0/3",
        "1/3",
        "2/3",
        "3/3",
        "3/3",
    ]


def test_a_terminal_and_a_notebook_get_a_bar() -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    class OutStream:
        def isatty(self) -> bool:
            return False

    assert progress._draws(Terminal())
    assert not progress._draws(OutStream())
    OutStream.__module__ = "ipykernel.iostream"
    assert progress._draws(OutStream())
