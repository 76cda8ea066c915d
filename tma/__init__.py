"""Order fine-tuning data for a test set, train in exactly that order, measure what it changes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tma.arrange import arrange
from tma.audit import Audit, audit
from tma.config import RunConfig
from tma.data import load, load_both
from tma.describe import data_figure, describe
from tma.embed import embed
from tma.errors import DataError, TmaError
from tma.method import Method
from tma.parallel import run_all
from tma.receipt import Arranged, Receipt, arrange_dataset, read_receipt
from tma.rounds import test_centric_rounds
from tma.runs import Run, run
from tma.saving import save
from tma.study import StudyConfig, study_settings

if TYPE_CHECKING:
    from tma.duplicates import near_duplicates
    from tma.similarity import prefix_distances, row_distances, weighted_similarity_distance

__version__ = "0.1.0"

_NEED_TORCH = {
    "near_duplicates": "tma.duplicates",
    "prefix_distances": "tma.similarity",
    "row_distances": "tma.similarity",
    "weighted_similarity_distance": "tma.similarity",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Arranged",
    "Audit",
    "DataError",
    "Method",
    "Receipt",
    "Run",
    "RunConfig",
    "StudyConfig",
    "TmaError",
    "arrange",
    "arrange_dataset",
    "audit",
    "data_figure",
    "describe",
    "embed",
    "load",
    "load_both",
    "near_duplicates",
    "prefix_distances",
    "read_receipt",
    "row_distances",
    "run",
    "run_all",
    "save",
    "study_settings",
    "test_centric_rounds",
    "weighted_similarity_distance",
]
