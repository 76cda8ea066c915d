"""The chapters at scale `study`: everything is read from published runs, nothing is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tma
from tma import store
from tma.arrange.spec import MEASURES
from tma.data import load as data
from tma.runs import store as runs
from tma.study import arms, claims

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def publish(config: tma.RunConfig, folder: Path) -> None:
    """Write a run of random numbers, of the real test instances, as `export` writes one."""
    named = runs.resolve(config)
    place = folder / named.key
    if place.is_dir():
        return
    place.mkdir(parents=True)
    random = np.random.default_rng(config.seed)
    steps = sorted({*config.eval_at, *range(0, 65, config.eval_every)})
    ids, tasks = named.test["id"][:], named.test["task"][:]
    count, rows = len(ids), len(ids) * len(steps)
    at = np.repeat(steps, count)
    table = pd.DataFrame({"step": at, "id": ids * len(steps), "task": tasks * len(steps)})
    course = 4 - np.log1p(at) / 3 + 0.3 * random.normal(size=rows)
    sources = data.sources(named.test) * len(steps)
    losses = table.assign(source=sources, loss_sum=2 * course, tokens=2)
    losses.to_parquet(place / "losses.parquet")
    pd.DataFrame({"step": steps, "loss": 1.0}).to_parquet(place / "training.parquet")
    for name in ("order.json", "order.receipt.json"):
        store.write_json(place / name, [])
    later = table[table["step"] > 0]
    later[["step", "id"]].assign(similarity=random.normal(size=len(later))).to_parquet(
        place / "similarity.parquet"
    )
    found = [(t, s, m, random.normal()) for t in {*tasks} for s in steps[1:] for m in MEASURES]
    columns = ["task", "step", "measure", "distance"]
    pd.DataFrame(found, columns=columns).to_parquet(place / "distances.parquet")
    if config.generate_at:
        answered = table[table["step"].isin(config.generate_at)]
        names = ("rouge1", "rougeL", "exact_match")
        scores = {name: random.uniform(size=len(answered)) for name in names}
        answered.assign(**scores).to_parquet(place / "answers.parquet")
    manifest: dict[str, Any] = {
        "key": named.key, "config": runs.portable(named.config.to_json()),
        "inputs": named.inputs, "versions": {}, "hardware": "none", "precision": "none",
        "instances": config.limit, "steps": 64, "seconds": 1, "finished": "2026-11-26T00:00:00",
        "sums": store.checksums(place, sorted(file.name for file in place.iterdir())),
    }  # fmt: skip
    store.write_json(place / "manifest.json", manifest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs that the four chapters read."""
    made = tmp_path_factory.mktemp("published")
    for arm in arms.chosen("1,1b,2,6,6b,7a,7b"):
        for configs in arm.configs(arm.of("study")).values():
            for config in configs:
                publish(config, made)
    return made


def executed(name: str, folder: Path, tmp_path: Path) -> Path:
    """Execute a chapter where training and embedding end in an error; return it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, sys\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('tma.train.loop', 'sentence_transformers'):\n"
        "            raise RuntimeError(f'{name} is wanted: something trains or embeds')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    out = tmp_path / f"{name}.ipynb"
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"TMA_PUBLISHED": str(folder), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "papermill", f"{ROOT}/notebooks/{name}.ipynb", str(out)]
    command += ["-p", "scale", "study", "-p", "output_dir", str(tmp_path / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("0[1-5]*.ipynb"))
"""The chapters of the study; the one on a user's own data embeds and trains."""


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_of_published_runs_trains_and_embeds_nothing(
    name: str, folder: Path, tmp_path: Path
) -> None:
    out = executed(name, folder, tmp_path)
    found = claims.read(tmp_path / name / "claims.json")
    assert {v.claim for v in found} == {c for c, n in claims.NOTEBOOKS.items() if n == name}
    undecided = {"not decided yet", "not tested at this scale"}
    assert not {verdict.verdict for verdict in found} & undecided
    assert "tests fold *s* mod 5" in out.read_text("utf-8")


def test_what_has_not_been_made_is_said(folder: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    [arm] = arms.chosen("1")
    for config in (one for made in arm.configs(arm.of("study")).values() for one in made):
        key = runs.resolve(config).key
        (part / key).symlink_to(folder / key)
    executed("04_tma", part, tmp_path)
    found = {v.claim: v for v in claims.read(tmp_path / "04_tma" / "claims.json")}
    assert {v.verdict for v in found.values()} == {"not decided yet"}
    assert found["C7"].measure.startswith("not made yet: rounds 4 to 6 − rounds 1 to 3")
