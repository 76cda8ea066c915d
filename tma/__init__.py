"""Order fine-tuning data for a test set, train in exactly that order, measure what it changes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tma import study
from tma.arrange.audit import Audit, audit
from tma.arrange.orders import arrange
from tma.arrange.receipt import Arranged, Receipt, arrange_dataset, read_receipt
from tma.arrange.rounds import test_centric_rounds
from tma.arrange.spec import Method
from tma.data.describe import data_figure, describe
from tma.data.load import load, load_both
from tma.data.save import save
from tma.embed import embed
from tma.errors import DataError, TmaError
from tma.runs.config import RunConfig
from tma.runs.parallel import run_all
from tma.runs.store import Run, run
from tma.study.settings import StudyConfig

if TYPE_CHECKING:
    from tma.arrange.distances import prefix_distances, row_distances, weighted_similarity_distance
    from tma.arrange.duplicates import near_duplicates

__version__ = "0.1.0"

_NEED_TORCH = {
    "near_duplicates": "tma.arrange.duplicates",
    "prefix_distances": "tma.arrange.distances",
    "row_distances": "tma.arrange.distances",
    "weighted_similarity_distance": "tma.arrange.distances",
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
    "study",
    "test_centric_rounds",
    "weighted_similarity_distance",
]
