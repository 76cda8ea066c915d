"""Order fine-tuning data for a test set, train in exactly that order, measure what it changes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tma import study
from tma.arrange.audit import Audit, audit
from tma.arrange.orders import arrange
from tma.arrange.receipt import Arranged, Receipt, arrange_dataset, read_receipt
from tma.arrange.rounds import test_centric_rounds
from tma.arrange.spec import Method
from tma.data.describe import describe
from tma.data.load import load
from tma.data.save import save
from tma.embed import embed
from tma.errors import DataError, TmaError
from tma.runs.config import RunConfig, load_both
from tma.runs.parallel import run_all
from tma.runs.store import Run, run
from tma.study.settings import StudyConfig

if TYPE_CHECKING:
    from tma.arrange.distances import prefix_distances, row_distances, weighted_similarity_distance
    from tma.arrange.duplicates import near_duplicates
    from tma.study.figures import data_figure

__version__ = "0.1.0"

_LAZY = {
    "data_figure": "tma.study.figures",
    "near_duplicates": "tma.arrange.duplicates",
    "prefix_distances": "tma.arrange.distances",
    "row_distances": "tma.arrange.distances",
    "weighted_similarity_distance": "tma.arrange.distances",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch or matplotlib when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
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
