"""Datasets of the hub → batches of rows, through `datasets` with its cache and its settings.

`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` hold as everywhere. What goes wrong becomes one message
that says which login or which local copy is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tma.data.batches import Batch, arrow_rows, named
from tma.data.readers import arrow_file
from tma.errors import DataError
from tma.store import digest

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")
PARQUET = "refs/convert/parquet"
"""Branch on which the hub keeps datasets that once were scripts, converted to Parquet."""
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


def split_id(name: str) -> tuple[str, str | None]:
    """Return hub id and configuration of `owner/name:configuration`."""
    found, _, configuration = name.partition(":")
    return found, configuration or None


@cache
def splits(name: str, configuration: str | None = None, **given: Any) -> Mapping[str, Dataset]:
    """Return the splits of a hub dataset; the hub is asked once a process.

    Args:
        name: hub id.
        configuration: one of the dataset's, where it has several.
        given: what else `datasets.load_dataset` takes.

    Raises:
        DataError: gated, unreachable, unknown or unreadable; the message says what is needed.
    """
    import datasets

    found: Mapping[str, Dataset] = _asked(
        name, lambda more: datasets.load_dataset(name, configuration, **given, **more)
    )
    return found


@cache
def configurations(name: str) -> tuple[str, ...]:
    """Return the names of a dataset's configurations; the hub is asked once a process.

    Raises:
        DataError: as for `splits`.
    """
    import datasets

    return tuple(_asked(name, lambda more: datasets.get_dataset_config_names(name, **more)))


def key(parts: Mapping[str, Dataset]) -> str:
    """Return a digest of what `datasets` calls the fingerprints of the splits."""
    return digest(*(text for name in parts for text in (name, parts[name]._fingerprint)))


def batches(dataset: Dataset, name: str, part: str | None) -> Iterator[Batch]:
    """Yield the rows of a dataset that was just loaded."""
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    seen = 0
    for file in files:
        for batch in arrow_file(file, part, seen):
            seen += len(batch.rows)
            yield batch
    if not files:  # small ones may be kept in memory
        with named(name):
            yield from arrow_rows(dataset.data.to_batches(), name, part)
    elif seen != len(dataset):
        raise DataError(f"dataset={name!r}: {seen} rows in the cache; expected {len(dataset)}.")


def _asked(name: str, ask: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        try:
            return ask({})
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return ask({"revision": PARQUET})
    except Exception as error:
        # Every library below has its own error classes; the user needs one message.
        raise refusal(name, error) from error


def refusal(name: str, error: BaseException) -> DataError:
    """Return the one message for an error of the hub: which login or local copy is needed."""
    chain = list(_chain(error))
    kinds = {kind.__name__ for e in chain for kind in type(e).__mro__}
    said = " ".join(str(e) for e in chain)
    copy = "or give a local copy instead of the name"
    if "GatedRepoError" in kinds or "gated dataset" in said:
        return DataError(
            f"dataset={name!r} is gated: accept its terms at "
            f"https://huggingface.co/datasets/{name} and {_LOGIN}, {copy}."
        )
    if kinds & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException"}:
        offline = "HF_HUB_OFFLINE is set" if "OfflineModeIsEnabled" in said else "no connection"
        return DataError(
            f"dataset={name!r} is not in the cache (HF_HOME), and the hub cannot be reached "
            f"({offline}). Connect once, {copy}."
        )
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"} or 401 in _status(chain):
        return DataError(
            f"dataset={name!r} is not on the hub, or is private. Check the id, {_LOGIN}, {copy}."
        )
    hint = " Give one as owner/name:configuration." if "Config name is missing" in said else ""
    return DataError(f"dataset={name!r} could not be read: {_reason(chain)}.{hint}")


def _status(chain: list[BaseException]) -> set[int]:
    """Return the HTTP status codes of the answers that the errors carry."""
    answers = [getattr(error, "response", None) for error in chain]
    return {getattr(answer, "status_code", None) or 0 for answer in answers}


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _reason(chain: list[BaseException]) -> str:
    """Return what the innermost error that says something says, on one line."""
    said = [" ".join(str(e).split()) for e in chain]
    return next((text for text in reversed(said) if text), type(chain[0]).__name__).rstrip(".")
