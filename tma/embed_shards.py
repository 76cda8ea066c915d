"""Files of instances → files of unit rows, each where a worker of a cluster can read and write it.

A file is embedded as `tma.embed(tma.load(file, split="all"))` does, by one worker. Beside its rows,
NAME.npy, stand the instances' ids and places, NAME.parquet. The rows are written last and under
another name first: where they are, their file is done, and another call skips it. What made the
rows stands in settings.json, and other settings need another folder.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from logging.handlers import BufferingHandler
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tma.cluster import Kept, Tasks
from tma.data.load import load
from tma.embed import Text, embed
from tma.encoders import AnyEncoder, find_encoder
from tma.errors import ParameterError, check_choice, first_line, wrong

log = logging.getLogger(__name__)

Place = str | PathLike[str]
COLUMNS = ("id", "task", "place")


def embed_shards(
    files: Sequence[Place],
    out: Place,
    encoder: AnyEncoder | None = None,
    *,
    cluster: str = "ray",
    text: Text = "both",
    **settings: Any,
) -> list[str]:
    """Embed files on a cluster, one worker a file; files that are done are skipped.

    `tma.arrange(order, out, Y, cluster=…)` takes the folder as X, its files by name.

    Args:
        files: JSONL, Parquet or other files of `tma.load`, local to all nodes or of an object store
            (s3://…, gs://…); no two of one name.
        out: the folder of the results, local to all nodes or of an object store.
        encoder: as in `tma.embed`.
        cluster: "ray" or "ray:ADDRESS".
        text: as in `tma.embed`.
        settings: of `tma.load`, such as `columns`, but for `split`, which is "all".

    Returns:
        The files of rows, in the sequence of `files`: (n, d) float32, of unit rows.

    Raises:
        ParameterError: names that are equal, a place or a cluster that cannot be used, or a folder
            with rows of another encoder or other settings.
        DataError, ValueError: as `tma.load` and `tma.embed`, for the first file that fails.
        TmaError: a worker was killed again and again.
    """
    check_choice("text", text, get_args(Text))
    if isinstance(files, str) or not files:
        raise wrong("files", files, "a list of files, at least one")
    if "split" in settings:
        raise wrong("split", settings["split"], 'none: every row of a file is embedded, "all"')
    names = [_stem(fspath(file)) for file in files]
    for name in names:
        if names.count(name) > 1:
            raise wrong("files", name, "files of different names: results are named by them")
    target = _absolute(fspath(out)).rstrip("/")
    results = [f"{target}/{name}.npy" for name in names]
    found, tasks = find_encoder(encoder), Tasks(cluster)
    _check_settings(target, {"encoder": found.name, "text": text, "settings": settings})
    left = [
        (_absolute(fspath(file)), result)
        for file, result in zip(files, results, strict=True)
        if not _exists(result)
    ]
    given = tasks.keep(found), text, settings
    told = tasks.map(_embed_file, *given, over=left)
    for (source, _), warnings in zip(left, told, strict=True):
        for warning in warnings:
            log.warning("%s: %s", source, warning)
    return results


def _check_settings(folder: str, made_by: dict[str, Any]) -> None:
    """Write what makes the rows of a folder; refuse a folder whose rows something else made."""
    from pyarrow import fs

    place, text = f"{folder}/settings.json", json.dumps(made_by, sort_keys=True, default=str)
    system, path = _found(folder)
    there = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    if _exists(place) and any(file.base_name.endswith(".npy") for file in there):
        with system.open_input_stream(_found(place)[1]) as stream:
            made = stream.read().decode()
        if made != text:
            raise wrong("out", folder, f"a new folder: its rows are of {made}, and not of {text}")
    _write(place, text.encode())


def _embed_file(
    encoder: Kept, text: Text, settings: dict[str, Any], own: tuple[str, str]
) -> list[str]:
    """Embed one file, unless another worker, since lost, has written it; return the warnings."""
    source, result = own
    if _exists(result):
        return []
    told = BufferingHandler(10**6)
    told.setLevel(logging.WARNING)
    logging.getLogger("tma").addHandler(told)
    try:
        _write_rows(encoder, text, settings, source, result)
    finally:
        logging.getLogger("tma").removeHandler(told)
    return [record.getMessage() for record in told.buffer]


def _write_rows(
    encoder: Kept, text: Text, settings: dict[str, Any], source: str, result: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = load(_local(source, Path(folder)), split="all", **settings)
    ids = io.BytesIO()
    data.select_columns([*COLUMNS]).to_parquet(ids)
    _write(result.removesuffix(".npy") + ".parquet", ids.getvalue())
    rows = io.BytesIO()
    np.save(rows, embed(data, encoder.value, text=text), allow_pickle=False)
    _write(result, rows.getvalue())


def _stem(file: str) -> str:
    return file.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def _found(place: str) -> tuple[Any, str]:
    """Return the file system of a place, and the place in it."""
    from pyarrow import fs

    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(place)
    except (OSError, ValueError) as error:
        raise ParameterError(f"{place} cannot be used: {first_line(error)}") from error
    return found


def _exists(place: str) -> bool:
    system, path = _found(place)
    return bool(system.get_file_info(path).is_file)


def _local(source: str, folder: Path) -> Path:
    """Return a file that this machine can read: a copy, where it lies in an object store."""
    if "://" not in source:
        return Path(source)
    system, path = _found(source)
    copy = folder / path.rsplit("/", 1)[-1]
    with system.open_input_stream(path, compression=None) as stream, copy.open("wb") as written:
        shutil.copyfileobj(stream, written)
    return copy


def _write(place: str, content: bytes) -> None:
    """Write a file whole or not at all; an object store does so by itself."""
    system, path = _found(place)
    system.create_dir(path.rsplit("/", 1)[0], recursive=True)
    draft = f"{path}.new" if system.type_name == "local" else path
    with system.open_output_stream(draft, compression=None) as stream:
        stream.write(content)
    if draft != path:
        system.move(draft, path)
