"""The hub: a branch → its commit, files of a commit → rows; one message for each of its errors.

A branch is looked up once a process. What is listed, fetched and stored belongs to a commit: it is
asked for once and never grows old. `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` hold as everywhere.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from tma.data.batches import Batch, arrow_batched, chosen_splits
from tma.data.readers import dataset_batches, local_rows
from tma.data.split import under_cap
from tma.errors import DataError, StateError, TmaError
from tma.store import cache_dir, new_file, write_json

log = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"
"""Branch with the hub's conversion to Parquet, also of datasets that once were scripts."""
_ON_IT = re.compile(r"[^/]+/[^/]+/[0-9]{4}\.parquet")
"""A file on that branch: configuration, split, number."""
_COMMIT = re.compile("[0-9a-f]{40}")
_DOWNLOADS = 8
"""Files that are fetched at a time."""
_UNREACHED = {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException"}
_SILENT = _UNREACHED | {"TransportError"}
_BROKEN_OFF = {"RemoteProtocolError", "ReadError"}
"""Names of errors of a hub that is not there, does not answer, or not to the end."""
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


class Pin(NamedTuple):
    """A dataset of the hub at a commit, which never changes."""

    hub_id: str
    commit: str

    def __str__(self) -> str:
        return f"{self.hub_id}@{self.commit}"


@cache
def pinned(hub_id: str, revision: str | None = None) -> Pin:
    """Return a dataset at the commit of a branch or tag; without a connection, at that found last.

    Raises:
        DataError: the hub does not have it, does not give it, or cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if revision is not None and _COMMIT.fullmatch(revision):
        return Pin(hub_id, revision)
    # Where huggingface_hub keeps it, too.
    folder = repo_folder_name(repo_id=hub_id, repo_type="dataset")
    known = Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main")
    with hub_errors(f"{hub_id}@{revision}" if revision else hub_id):
        try:
            found = HfApi().dataset_info(hub_id, revision=revision, expand=["sha"])
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if not (known.is_file() and (status >= 500 or _kinds(error) & _SILENT)):
                raise
            pin = Pin(hub_id, known.read_text("utf-8").strip())
            level = logging.INFO if constants.HF_HUB_OFFLINE else logging.WARNING
            log.log(level, "dataset %s: the hub does not answer; %s is read", hub_id, pin)
            return pin
    if found.id != hub_id:
        log.warning("dataset %s: its name on the hub is %s now. Give that one.", hub_id, found.id)
    with suppress(StateError), new_file(known) as draft:  # others' cache may be closed
        draft.write_text(str(found.sha), "utf-8")
    return Pin(hub_id, str(found.sha))


def listed(pin: Pin) -> Mapping[str, int]:
    """Return the bytes of every file of a dataset, asked for once by all processes."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    record = _place(pin) / "files.json"
    if not record.is_file():
        ask = partial(HfApi().list_repo_tree, repo_type="dataset", recursive=True)
        with hub_errors(str(pin)):
            found = list(ask(pin.hub_id, revision=pin.commit))
        write_json(record, {one.path: one.size for one in found if isinstance(one, RepoFile)})
    return _sizes(record)


def _place(pin: Pin) -> Path:
    """Return the folder of what is kept of a commit, beside the files that `HF_HOME` has."""
    return cache_dir() / "hub" / str(pin)


@cache
def _sizes(record: Path) -> Mapping[str, int]:
    found: dict[str, int] = json.loads(record.read_text("utf-8"))
    return found


def announce(pin: Pin, files: Sequence[str], of: str = "", most: str = "") -> None:
    """Say what will be fetched, if anything; `of` and `most` stand before files and megabytes."""
    sizes = listed(pin)
    missing = [sizes[file] for file in files if _fetched_before(pin, file) is None]
    if missing:
        size = f"{len(missing)} files, {most}{sum(missing) / 1e6:,.1f} MB"
        log.warning("dataset %s: fetching %s%s", pin.hub_id, of, size)


def fetched(pin: Pin, files: Sequence[str]) -> Path:
    """Return the folder with files of a dataset; those that the cache lacks are fetched."""
    from huggingface_hub import hf_hub_download

    fetch = partial(hf_hub_download, pin.hub_id, repo_type="dataset", revision=pin.commit)
    with hub_errors(pin.hub_id), ThreadPoolExecutor(_DOWNLOADS) as pool:
        paths = list(pool.map(lambda file: fetch(filename=file), files))
    return Path(paths[0]).parents[files[0].count("/")]


def file_batches(pin: Pin, pattern: str) -> Iterator[Batch]:
    """Yield the rows of the files that match a pattern, read like a local folder with only them."""
    files = [file for file in listed(pin) if fnmatchcase(file, pattern)]
    if not files:
        raise lacking(pin, f"files {pattern}")
    announce(pin, files)
    root = fetched(pin, files)
    yield from placed(local_rows(root, pattern).batches(), root, pin)


def placed(batches: Iterator[Batch], root: Path, pin: Pin) -> Iterator[Batch]:
    """Tell where rows stand in a commit, wherever this machine keeps it."""
    for batch in batches:
        yield replace(batch, file=f"{pin}{batch.file.removeprefix(str(root))}")


def lacking(pin: Pin, what: str) -> DataError:
    """Return the message for a dataset that is not laid out as expected."""
    return DataError(
        f"dataset='{pin}' has no {what}. Name another commit, as in p3@COMMIT, or give a local "
        "copy."
    )


def drawn(pin: Pin, files: Sequence[str], most: int, seed: str) -> Iterator[Batch]:
    """Yield the rows of Parquet files that a cap draws; only row groups with such are fetched."""
    import pyarrow.parquet as pq

    with hub_errors(pin.hub_id), ExitStack() as opened:
        parts = {file: opened.enter_context(pq.ParquetFile(_opened(pin, file))) for file in files}
        count = sum(part.metadata.num_rows for part in parts.values())
        numbers = under_cap(count, most, seed, False)
        left_out, end = count - len(numbers), 0
        for file, part in parts.items():
            first = end
            for group in range(part.num_row_groups):
                start, end = end, end + part.metadata.row_group(group).num_rows
                own = [number for number in numbers if start <= number < end]
                if not own:
                    continue
                table = part.read_row_group(group).take([number - start for number in own])
                for batch in arrow_batched([table], f"{pin}/{file}", None):
                    places = [own[place - 1] - first + 1 for place in batch.places]
                    yield replace(batch, places=places, left_out=left_out)
                    left_out = 0


def _opened(pin: Pin, file: str) -> Any:
    """Return a file for pyarrow: one that was fetched, else one that is read in pieces."""
    from huggingface_hub import HfFileSystem

    if (path := _fetched_before(pin, file)) is not None:
        return path
    system, name = HfFileSystem(), f"datasets/{pin}/{file}"
    # What it would list every folder for is known.
    known = {"name": name, "type": "file", "size": listed(pin)[file]}
    system.dircache[name.rpartition("/")[0]] = [known]
    return system.open(name, cache_type="none")


def _fetched_before(pin: Pin, file: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(pin.hub_id, file, revision=pin.commit, repo_type="dataset")
    return found if isinstance(found, str) else None


def data_pin(hub_id: str, revision: str | None) -> Pin:
    """Return a dataset at its commit; one that is read by a script, at that of its conversion."""
    pin = pinned(hub_id, revision)
    if f"{hub_id.split('/')[1]}.py" not in listed(pin):
        return pin
    if revision is None:
        return pinned(hub_id, CONVERTED)
    raise DataError(
        f"dataset='{pin}' is read by a script of its own, which is not run. Give "
        f"{hub_id}@{CONVERTED}, the hub's conversion, or a local copy."
    )


def batches(pin: Pin, configuration: str | None, name: str) -> Iterator[Batch]:
    """Yield the rows of any dataset, as `datasets` finds them by its card and its files."""
    import datasets

    files = [file for file in listed(pin) if file != ".gitattributes"]
    if files and all(map(_ON_IT.fullmatch, files)):
        yield from _converted(pin, files, configuration, name)
        return
    # Where the hub does not answer, `datasets` takes what its cache has of any commit.
    given = {"revision": pin.commit, "cache_dir": str(_place(pin))}
    with hub_errors(name):
        found = datasets.load_dataset(pin.hub_id, configuration, **given)
    for part in chosen_splits(found, name):
        yield from dataset_batches(found[part], name, part)


def _converted(
    pin: Pin, files: Sequence[str], configuration: str | None, name: str
) -> Iterator[Batch]:
    """Yield the rows of a configuration on the branch of conversions, which has no card."""
    names = sorted({file.split("/")[0] for file in files})
    chosen = configuration or (names[0] if len(names) == 1 else None)
    if chosen not in names:
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        problem = f"has {len(names)} configurations: {some}. Give one as owner/name:configuration"
        raise DataError(f"dataset={name!r} {problem}.")
    own = [file for file in files if file.startswith(f"{chosen}/")]
    if any(file.startswith(f"{chosen}/partial-") for file in own):
        raise DataError(
            f"dataset={name!r}: the hub has converted it only in part. Give a local copy."
        )
    announce(pin, own)
    root = fetched(pin, own)
    yield from placed(local_rows(root / chosen).batches(), root, pin)


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn every error of the hub into one `DataError`."""
    try:
        yield
    except TmaError:
        raise
    except Exception as error:
        # Every library below has its own error classes; the user needs one message.
        raise hub_error(name, error) from error


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


def _kinds(error: BaseException) -> set[str]:
    """Return the names of the classes of an error and of what caused it."""
    return {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}


def hub_error(name: str, error: BaseException) -> DataError:
    """Return the one message for an error of the hub: what is needed, such as a login or a copy."""
    from huggingface_hub import constants

    chain, kinds = _chain(error), _kinds(error)
    texts = [" ".join(str(one).split()) for one in chain]
    words, copy = " ".join(texts), "or give a local copy instead of the name"
    page = f"https://huggingface.co/datasets/{re.split('[@:]', name)[0]}"
    if "GatedRepoError" in kinds or "gated dataset" in words:
        login = f"is gated: accept its terms at {page} and {_LOGIN}"
        if "403 Client Error" in words or "ask for access" in words:
            login = f"is gated, and your account may not read it: accept its terms at {page}"
        problem = f"{login}, {copy}"
    elif kinds & _UNREACHED:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no connection"
        problem = (
            f"is not in the cache (HF_HOME), and the hub cannot be reached ({reason}). Connect "
            f"once, {copy}"
        )
    elif "RevisionNotFoundError" in kinds:
        problem = f"is not on the hub: no such revision. Give a branch, a tag or a commit, {copy}"
    elif kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"} or "401 Unauth" in words:
        problem = f"is not on the hub, or is private. Check the id, {_LOGIN}, {copy}"
    else:
        innermost = next((text for text in reversed(texts) if text), type(error).__name__)
        problem = f"could not be read: {innermost.rstrip('.')}"
        if "Config name is missing" in words:
            problem += ". Give one as owner/name:configuration"
        elif kinds & _BROKEN_OFF or "Consistency check failed" in words:
            problem = f"could not be fetched whole: {innermost.rstrip('.')}. Ask for it again"
    return DataError(f"dataset={name!r} {problem}.")
