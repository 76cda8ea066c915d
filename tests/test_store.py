from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tma import store
from tma.errors import StateError


def test_digest_separates_its_parts() -> None:
    assert store.digest("ab", "c") != store.digest("a", "bc")
    assert store.digest("a") == store.digest(b"a")
    assert store.digest("tma")[:16] == "31a3363011dd9619"


def test_a_file_is_read_once_for_its_digest_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sha256 = list[Path](), store.file_digest
    monkeypatch.setattr(store, "file_digest", lambda path: (read.append(path), sha256(path))[1])
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("a")
    link.symlink_to(path)
    assert store.known_digest(path) == store.known_digest(link) == sha256(path)
    assert read == [path]
    # Neither size nor time of modification tell that it changed.
    before = path.stat()
    time.sleep(0.02)  # the clock of changes is coarse
    path.write_text("b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.known_digest(path) == sha256(path)
    assert read == [path] * 2


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with store.locked(target), store.new_folder(target) as draft:
        (draft / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(RuntimeError), store.locked(target), store.new_folder(target) as draft:
        (draft / "half.txt").write_text("a")
        raise RuntimeError
    with pytest.raises(RuntimeError), store.new_file(tmp_path / "file.txt") as file:
        file.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["made.lock"]


@pytest.mark.parametrize("other", ["made-b", "m*"])
def test_drafts_of_other_names_are_left_alone(tmp_path: Path, other: str) -> None:
    with store.new_folder(tmp_path / "made-b") as draft:
        with store.locked(tmp_path / ("made" if other == "made-b" else other)):
            pass
        assert draft.is_dir()


def test_a_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    store.write_json(path, {"a": 1})
    store.write_json(path, {"a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'


def test_not_a_number_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "value.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "made"
    script = (
        "import sys, time; from pathlib import Path; from tma import store\n"
        "p = Path(sys.argv[1])\n"
        "with store.locked(p), store.new_folder(p) as d:\n"
        "    (d / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.kill()
    assert not target.exists()
    assert len(list(tmp_path.glob(".new-*"))) == 1
    start = time.monotonic()
    with store.locked(target), store.new_folder(target) as draft:
        (draft / "whole").write_text("y")
    assert time.monotonic() - start < 10
    assert list(tmp_path.glob(".new-*")) == []
    assert [p.name for p in target.iterdir()] == ["whole"]


def test_a_lock_that_nobody_made_is_not_held(tmp_path: Path) -> None:
    assert not store.is_locked(tmp_path / "none" / "made")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "odd.lock").symlink_to(tmp_path / "gone" / "lock")
    assert not store.is_locked(tmp_path / "odd")
    with store.locked(tmp_path / "made"):
        assert store.is_locked(tmp_path / "made")
    assert not store.is_locked(tmp_path / "made")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EFBIG, "File too large"),
        (errno.EDQUOT, "Disk quota exceeded"),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_message(tmp_path: Path, code: int, reason: str) -> None:
    target = tmp_path / "made"
    for new in (store.new_file, store.new_folder):
        with (
            pytest.raises(StateError, match=rf"{target} could not .*: {reason}\. Free space"),
            new(target) as draft,
        ):
            raise OSError(code, os.strerror(code), str(draft))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_not_taken_for_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), store.new_file(tmp_path / "made"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_lock_in_a_closed_folder_is_one_message(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(StateError, match=r"made\.lock could not .*: Permission denied\."),
        store.locked(tmp_path / "made"),
    ):
        pass
    tmp_path.chmod(0o700)
