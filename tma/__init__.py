"""Order fine-tuning data for a test set, train in exactly that order, measure what it changes."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tma.arrange.audit import Audit as Audit
    from tma.arrange.audit import audit as audit
    from tma.arrange.distances import prefix_distances as prefix_distances
    from tma.arrange.distances import weighted_similarity_distance as weighted_similarity_distance
    from tma.arrange.duplicates import leaks as leaks
    from tma.arrange.duplicates import near_duplicates as near_duplicates
    from tma.arrange.orders import arrange as arrange
    from tma.arrange.receipt import Arranged as Arranged
    from tma.arrange.receipt import Receipt as Receipt
    from tma.arrange.receipt import arrange_dataset as arrange_dataset
    from tma.arrange.receipt import read_receipt as read_receipt
    from tma.arrange.rounds import test_centric_rounds as test_centric_rounds
    from tma.arrange.spec import Method as Method
    from tma.data.describe import describe as describe
    from tma.data.load import load as load
    from tma.data.save import save as save
    from tma.doctor import doctor as doctor
    from tma.embed import embed as embed
    from tma.embed_shards import embed_shards as embed_shards
    from tma.errors import DataError as DataError
    from tma.errors import TmaError as TmaError
    from tma.export.consumed import verify as verify
    from tma.export.guard import OrderGuard as OrderGuard
    from tma.export.handover import export as export
    from tma.runs.config import RunConfig as RunConfig
    from tma.runs.config import load_both as load_both
    from tma.runs.execute import run as run
    from tma.runs.parallel import run_all as run_all
    from tma.runs.store import Run as Run
    from tma.study.audit_page import save_audit as save_audit
    from tma.study.compare import Comparison as Comparison
    from tma.study.compare import compare as compare
    from tma.study.figures import data_figure as data_figure
    from tma.study.settings import StudyConfig as StudyConfig

__version__ = "0.1.0"

_PUBLIC = {
    "tma.data.load": ["load"],
    "tma.data.describe": ["describe"],
    "tma.data.save": ["save"],
    "tma.embed": ["embed"],
    "tma.embed_shards": ["embed_shards"],
    "tma.arrange.spec": ["Method"],
    "tma.arrange.orders": ["arrange"],
    "tma.arrange.rounds": ["test_centric_rounds"],
    "tma.arrange.distances": ["prefix_distances", "weighted_similarity_distance"],
    "tma.arrange.duplicates": ["leaks", "near_duplicates"],
    "tma.arrange.audit": ["Audit", "audit"],
    "tma.arrange.receipt": ["Arranged", "Receipt", "arrange_dataset", "read_receipt"],
    "tma.runs.config": ["RunConfig", "load_both"],
    "tma.runs.execute": ["run"],
    "tma.runs.parallel": ["run_all"],
    "tma.runs.store": ["Run"],
    "tma.export.handover": ["export"],
    "tma.export.guard": ["OrderGuard"],
    "tma.export.consumed": ["verify"],
    "tma.study.audit_page": ["save_audit"],
    "tma.study.compare": ["Comparison", "compare"],
    "tma.study.figures": ["data_figure"],
    "tma.study.settings": ["StudyConfig"],
    "tma.doctor": ["doctor"],
    "tma.errors": ["DataError", "TmaError"],
}
"""Module → public names in it."""
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
_ROOMS = ("data", "train", "runs", "study")
"""Packages that `import tma` makes reachable, such as `tma.study`."""


class _Package(ModuleType):
    """Imports a public name when it is first used, so that `import tma` loads nothing heavy.

    `arrange`, `embed` and `export` are functions that share their names with rooms and a module;
    importing those must not put them in the functions' place.
    """

    def __getattr__(self, name: str) -> Any:
        if name in _ROOMS:
            return import_module(f"tma.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'tma' has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name]), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_MODULE_OF})


sys.modules[__name__].__class__ = _Package

__all__ = [*_MODULE_OF]  # noqa: PLE0604  (all are strings)
