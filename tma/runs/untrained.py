"""Test losses before training: taken once for runs that begin with the same model.

They are shared between runs of one process each. What names them follows the rule for a run's key:
settings and content, not versions or hardware.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tma.errors import StateError
from tma.runs.config import RunConfig
from tma.runs.store import FORMAT
from tma.store import cache_dir, canonical_json, digest, write_json
from tma.train.encode import Encoded

SETTINGS = ("micro_tokens", "precision", "attention", "compile")
"""Settings of a run that decide how a loss is computed."""


def place(config: RunConfig, weights: str, test: Sequence[Encoded]) -> Path | None:
    """Return the file of a model's losses before training; None where they are not shared.

    Args:
        config: settings.
        weights: fingerprint of the model.
        test: test instances.
    """
    # Several processes would have to agree on whether the file is there.
    if PartialState().num_processes > 1:
        return None
    named = {
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "weights": weights,
        "test": [asdict(row) for row in test],
        "format": FORMAT,
    }
    return cache_dir() / "untrained" / f"{digest(canonical_json(named))[:20]}.json"


def read(file: Path | None) -> list[dict[str, Any]]:
    """Return the losses that a file holds; none where it is not there or not as written."""
    try:
        kept = json.loads(file.read_text("utf-8")) if file else {}
        whole = kept["sum"] == _sum(kept["losses"])
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return list(kept["losses"]) if whole else []


def keep(file: Path | None, losses: Sequence[Mapping[str, Any]]) -> None:
    """Write the losses of step 0 for other runs, unless they are there."""
    if file is None or read(file):
        return
    first = [dict(entry) for entry in losses if entry["step"] == 0]
    with suppress(StateError, OSError):  # what every run can measure by itself costs none its end
        write_json(file, {"losses": first, "sum": _sum(first)})


def _sum(losses: object) -> str:
    return digest(canonical_json(losses))
