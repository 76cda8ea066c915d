"""Runs that travel: exported with checksums, imported beside one's own, published in `book/runs`.

An exported run has no local path in its settings and, of answers, the scores without the text,
which may repeat the data. The caller may add tables, such as what the run had seen, so that a
reader needs no embeddings. Only `export` writes the folder of published runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.errors import DataError, ParameterError
from tma.runs.store import Run, is_complete, portable, runs_in
from tma.store import cache_dir, checksums, locked, new_file, new_folder, write_json

if TYPE_CHECKING:
    import pandas as pd

    Tables = Callable[[Run], Mapping[str, pd.DataFrame]]

INDEX = "index.parquet"


def export(keys: Sequence[str], target: Path | str, tables: Tables | None = None) -> list[str]:
    """Write finished runs, and an index of them, into a folder; return the keys written.

    `keys` are names of runs or their beginnings; `tables` gives, for a run, further tables by the
    name of their file. Runs that the folder holds already stay as they are.
    """
    target, written = Path(target).expanduser(), []
    for run in [_finished(key) for key in keys]:
        place = target / run.key
        with locked(place, lock=cache_dir() / "runs" / f"{run.key}.export.lock"):
            if not place.exists():
                with new_folder(place) as draft:
                    _write(run, draft, {} if tables is None else tables(run))
                written.append(run.key)
    write_index(target)
    return written


def _finished(key: str) -> Run:
    found = [run for run in runs_in(cache_dir() / "runs") if run.key.startswith(key)]
    found = [run for run in found if is_complete(run.folder)]
    if len(found) != 1:
        raise ParameterError(
            f"key={key!r} is the beginning of {len(found)} finished runs' names; expected one. "
            "`tma runs list` shows them."
        )
    return found[0]


def _write(run: Run, draft: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    manifest = run.manifest
    for name in manifest["sums"]:
        if name == "answers.parquet":
            run.answers.drop(columns="answer", errors="ignore").to_parquet(draft / name)
        else:
            shutil.copyfile(run.folder / name, draft / name)
    for name, table in tables.items():
        table.to_parquet(draft / name, index=False)
    sums = checksums(draft, [*{**manifest["sums"], **tables}])
    changed = {"config": portable(manifest["config"]), "sums": sums}
    write_json(draft / "manifest.json", manifest | changed)


def import_runs(source: Path | str) -> tuple[list[str], list[str]]:
    """Take the runs of a folder that `export` wrote into the cache; none is overwritten.

    Returns the keys that were taken, and those that were there already. If one run is damaged,
    nothing is taken.
    """
    source = Path(source).expanduser()
    found = runs_in(source)
    if not found:
        raise DataError(f"{source} holds no run; expected a folder that `tma runs export` wrote.")
    for run in found:
        if not is_complete(run.folder):
            raise DataError(
                f"{run.folder} is damaged: a file is missing, or does not have the checksum in its "
                "manifest. Export the run again."
            )
    taken, there = list[str](), list[str]()
    for run in found:
        place = cache_dir() / "runs" / run.key
        with locked(place):
            (there if place.exists() else taken).append(run.key)
            if not place.exists():
                with new_folder(place) as draft:
                    for file in run.folder.iterdir():
                        shutil.copyfile(file, draft / file.name)
    return taken, there


def write_index(target: Path) -> None:
    """Write `index.parquet`: one row per run of the folder, by key."""
    import pandas as pd

    with new_file(target / INDEX) as draft:
        pd.DataFrame(map(_row, runs_in(target))).to_parquet(draft, index=False)


def _row(run: Run) -> dict[str, Any]:
    """Return a run's row of the index: what it was, and its first and last loss."""
    means = run.losses.groupby("step")["loss"].mean()
    settings = ("model", "dataset", "order", "seed", "limit", "pool")
    measured = ("steps", "instances", "seconds", "hardware", "finished")
    return {
        "key": run.key,
        **{name: getattr(run.config, name) for name in settings},
        "settings": json.dumps(run.config.deciding, sort_keys=True),
        "first": float(means.iloc[0]),
        "final": float(means.iloc[-1]),
        **{name: run.manifest[name] for name in measured},
    }
