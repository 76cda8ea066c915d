from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu import pack, run
from tests.conftest import tiny_run
from tma.runs import published
from tma.runs import store as runs


@pytest.fixture
def parts(
    cache: Path,
    tiny_model: Path,
    dataset_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The parts of two runs of two steps, one of an order that goes by embeddings."""
    assert cache.is_dir()
    monkeypatch.setattr(pack, "PART", 5_000_000)
    settings = {"steps": 2, "batch_size": 4, "pool": 20}
    orders = ({"order": "tma_nft", "exact_limit": True}, {"order": "random"})
    configs = [tiny_run(tiny_model, dataset_file, **settings, **one) for one in orders]
    pack.pack(configs, tmp_path / "parts", packages=())
    return tmp_path / "parts"


def test_runs_are_made_from_the_parts_alone(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len([*parts.glob("part-*")]) > 2
    out, elsewhere = tmp_path / "out", os.environ | {"TMA_CACHE": str(tmp_path / "none")}
    command = [sys.executable, str(parts / "run.py"), str(parts), str(out)]
    command += ["--only", "runs", "--jobs", "2", "--minutes", "2"]
    subprocess.run(command, check=True, env=elsewhere, cwd=tmp_path, capture_output=True)
    found = json.loads((out / "results.json").read_text("utf-8"))
    assert (len(found["runs"]), found["left"], found["errors"]) == (2, 0, [])
    with tarfile.open(out / "runs-1.tar") as tar:
        tar.extractall(tmp_path / "runs", filter="data")
    monkeypatch.setenv("TMA_CACHE", str(tmp_path / "own"))
    assert sorted(published.import_runs(tmp_path / "runs")[0]) == sorted(found["runs"])
    made = [runs.Run(tmp_path / "runs" / key) for key in found["runs"]]
    assert {(one.config.order, one.config.dataset) for one in made} == {
        ("tma_nft", "tasks.jsonl"),
        ("random", "tasks.jsonl"),
    }
    assert all(one.manifest["steps"] == 2 for one in made)


def test_a_part_that_is_not_the_one_packed_is_refused(parts: Path) -> None:
    second = parts / "part-001"
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"part-001 has the SHA-256 [0-9a-f]{64}; expected .* it"):
        run.unpacked(parts)
    second.unlink()
    with pytest.raises(ValueError, match=r"part-001 has the SHA-256 of no file; expected"):
        run.unpacked(parts)
    assert not (parts / "kit").exists()
