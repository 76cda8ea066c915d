"""Runs that travel: exported with checksums, imported beside one's own, published with the package.

A published run is the folder of a finished run without what is not ours to publish: no path of a
machine, and of answers the scores without the text, which may repeat the data. Beside its tables
stands what it had seen (`tma.study.exposure`), so that a reader needs no embeddings. The folder
`book/runs` of a checkout holds those of the study; they are read, never written, by everything but
`export`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tma.errors import DataError, ParameterError
from tma.store import cache_dir, file_digest, locked, new_file, new_folder, write_json

INDEX = "index.parquet"
_LOCAL = ("model", "dataset", "test_dataset", "reward_model")


def folder() -> Path | None:
    """Return the folder of the published runs: `TMA_PUBLISHED`, else that of a checkout, if any."""
    named = os.environ.get("TMA_PUBLISHED")
    found = Path(named).expanduser() if named else Path(__file__).parents[2] / "book" / "runs"
    return found.resolve() if found.is_dir() else None


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with local paths by their last part, `p3:/data/x` as `p3:x`."""
    return {**config, **{name: _last_part(config.get(name)) for name in _LOCAL}}


def _last_part(name: str | None) -> str | None:
    if name is None:
        return None
    known, colon, place = name.partition(":")
    if colon and ("/" in place or "\\" in place):
        return f"{known}:{PurePath(place).name}"
    # A hub id has a slash too, but begins with none.
    return PurePath(name).name if PurePath(name).is_absolute() else name


def export(keys: Sequence[str], target: Path | str) -> list[str]:
    """Write finished runs into a folder that `import_runs` reads, and the index of all in it.

    Args:
        keys: names of the runs, as `tma runs` lists them, or their beginnings.
        target: the folder; runs that it already holds stay as they are.

    Returns:
        The keys that were written.

    Raises:
        ParameterError: no finished run, or more than one, has such a key.
        AssetError, DataError: the data of a run, of which is written what it had seen, cannot be
            had.
        StateError: the folder cannot be written.
    """
    target, written = Path(target).expanduser(), []
    for source in [_finished(key) for key in keys]:
        place = target / source.name
        with locked(place, lock=cache_dir() / "runs" / f"{source.name}.export.lock"):
            if not place.exists():
                with new_folder(place) as draft:
                    _write(source, draft)
                written.append(source.name)
    write_index(target)
    return written


def _finished(key: str) -> Path:
    from tma.runs.store import complete

    found = [path for path in sorted((cache_dir() / "runs").glob(f"{key}*")) if complete(path)]
    if len(found) != 1:
        raise ParameterError(
            f"key={key!r} is the beginning of {len(found)} finished runs' names; expected one. "
            "`tma runs` lists them."
        )
    return found[0]


def _write(source: Path, draft: Path) -> None:
    """Write the published form of a run."""
    import pandas as pd

    from tma.runs.store import Run
    from tma.study import exposure

    manifest = json.loads((source / "manifest.json").read_text("utf-8"))
    for name in manifest["sums"]:
        if name == "answers.parquet":
            pd.read_parquet(source / name).drop(columns="answer").to_parquet(draft / name)
        else:
            (draft / name).write_bytes((source / name).read_bytes())
    seen = exposure.tables(Run(source))
    for name, rows in seen.items():
        rows.to_parquet(draft / name, index=False)
    names = dict.fromkeys([*manifest["sums"], *seen])
    sums = {name: file_digest(draft / name) for name in names}
    write_json(
        draft / "manifest.json",
        manifest | {"config": portable(manifest["config"]), "sums": sums},
    )


def import_runs(source: Path | str) -> tuple[list[str], list[str]]:
    """Take the runs of a folder that `export` wrote into one's own; none is overwritten.

    Args:
        source: the folder.

    Returns:
        The keys that were taken, and those that were there already.

    Raises:
        DataError: the folder holds no run, or a file is not what its manifest has the checksum of;
            then nothing is taken.
    """
    from tma.runs.store import complete

    source = Path(source).expanduser()
    found = sorted(file.parent for file in source.glob("*/manifest.json"))
    if not found:
        raise DataError(f"{source} holds no run; expected a folder that `tma runs export` wrote.")
    for one in found:
        if not complete(one):
            raise DataError(
                f"{one} is damaged: a file is missing, or is not the one that its manifest has the "
                "checksum of. Export the run again."
            )
    taken = [one.name for one in found if _taken(one)]
    return taken, [one.name for one in found if one.name not in taken]


def _taken(source: Path) -> bool:
    """Copy a run into the cache unless one of its key is there; return whether it was copied."""
    place = cache_dir() / "runs" / source.name
    with locked(place):
        if place.exists():
            return False
        with new_folder(place) as draft:
            for file in source.iterdir():
                (draft / file.name).write_bytes(file.read_bytes())
    return True


def write_index(target: Path) -> None:
    """Write `index.parquet`: one row a run of the folder, by key."""
    import pandas as pd

    from tma.runs.store import Run

    rows = [_row(Run(file.parent)) for file in sorted(target.glob("*/manifest.json"))]
    with new_file(target / INDEX) as draft:
        pd.DataFrame(rows).to_parquet(draft, index=False)


def _row(run: Any) -> dict[str, Any]:
    """Return a run's line of the index: its settings that are not the defaults, and its ends."""
    manifest, config = run.manifest, run.config
    means = run.losses.groupby("step")["loss"].mean()
    names = ("model", "dataset", "order", "seed", "limit", "pool")
    return {
        "key": run.key,
        **{name: getattr(config, name) for name in names},
        "settings": json.dumps(config.deciding, sort_keys=True),
        "first": float(means.iloc[0]),
        "final": float(means.iloc[-1]),
        "steps": manifest["steps"],
        "instances": manifest["instances"],
        "seconds": manifest["seconds"],
        "hardware": manifest["hardware"],
        "finished": manifest["finished"],
    }
