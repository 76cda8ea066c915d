"""What the study's three sizes set when the caller does not: models, data, length, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """What a scale of the study sets when the caller does not."""

    purpose: str
    """For whom it is."""
    models: Mapping[str, str]
    """Preset name to built-in weights or hub id."""
    model: str
    """The preset of its published results."""
    dataset: str
    """Name of the dataset."""
    steps: int
    """Training steps wanted."""
    early_steps: int
    """The same in chapter 1, which asks how early the loss falls: a twentieth has to be a step."""
    batch_size: int
    """Instances a step."""
    max_tokens: int
    """Tokens of an instance at most."""
    learning_rate: float
    """Peak rate of AdamW, of models that `learning_rates` does not name."""
    eval_every: int
    """Steps between two evaluations."""
    sampled_every: int
    """The same in chapters 1 to 3, which ask at which step the loss falls."""
    micro_tokens: int
    """Tokens of a micro-batch at most, padding included."""
    pool: int | None
    """Instances that each seed draws, and TMA chooses from; None: all the data, for every seed."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """The same of a preset, chosen on validation data alone (`benchmarks/learning_rate.py`)."""
    folds: int | None = None
    """Folds of its dataset, of which seed s tests number s modulo `folds`; None: one split."""
    max_instance_tokens: int | None = None
    """Longer instances are left out; None: as the dataset."""
    per_task: tuple[int | None, int | None] | None = None
    """Instances a task at most, in training and in test; None: as the dataset."""
    test_limit: int | None = None
    """Test instances at most, drawn evenly over the tasks."""
    precision: str = "auto"
    """Arithmetic of the forward pass: bf16, fp32, or auto (bf16 where the machine has it)."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    seeds: int = 3
    """Seeds of a notebook's main comparisons."""
    fewer_seeds: int = 3
    """Seeds of the other ones."""
    task_size: int | None = None
    """Instances of a task in the samples of chapters 1 to 3, which are then of whole tasks; None:
    samples of single instances are large enough to hold many of each task."""
    pooled_per_task: tuple[int | None, int | None] | None = None
    """The same caps where an order selects from a pool (chapter 4); None: `per_task`."""
    blocks: int = 3
    """Blocks of rounds that are compared at most."""
    block_rounds: int = 5
    """Rounds of a block."""
    block_limit: int | None = None
    """Instances taken of each block; None: as many as each holds in every seed's pool."""
    made_before: bool = False
    """Whether chapters only read its runs, which `tma study` makes."""


_SMALL = {"llama": "smollm2-135m-instruct", "gemma": "gemma-3-270m", "qwen": "Qwen/Qwen2.5-0.5B"}
_LARGE = {
    "llama": "meta-llama/Llama-2-7b-hf",
    "gemma": "google/gemma-7b",
    "qwen": "Qwen/Qwen2.5-7B",
}

_PAPER: dict[str, Any] = {
    "batch_size": 16,
    "max_tokens": 1024,
    "eval_every": 10,
    "sampled_every": 10,
    "micro_tokens": 16384,
}

SCALES: dict[str, Scale] = {
    "pocket": Scale(
        "minutes on two CPU cores",
        _SMALL,
        model="llama",
        dataset="pocket",
        steps=8,
        early_steps=20,
        batch_size=4,
        max_tokens=256,
        learning_rate=1e-4,
        eval_every=4,
        sampled_every=2,
        micro_tokens=2048,
        pool=920,
        task_size=4,
        test_limit=19,
        max_new_tokens=20,
        block_rounds=2,
    ),
    "study": Scale(
        "the published results: some nights on two CPU cores",
        _SMALL,
        model="gemma",
        dataset="suite",
        steps=64,
        early_steps=64,
        batch_size=16,
        max_tokens=256,
        learning_rate=1e-4,
        eval_every=16,
        sampled_every=16,
        micro_tokens=2048,
        pool=10_000,
        learning_rates={"gemma": 1e-5, "llama": 1e-4},
        folds=5,
        max_instance_tokens=128,
        per_task=(1000, None),
        test_limit=240,
        max_new_tokens=32,
        seeds=5,
        blocks=4,
        block_rounds=3,
        block_limit=256,
        made_before=True,
    ),
    "paper": Scale(
        "the paper's settings",
        _LARGE,
        model="llama",
        dataset="flan-mini",
        steps=1800,
        early_steps=1800,
        learning_rate=1e-6,
        pool=None,
        test_limit=1200,
        # Flan-mini's own cap leaves no more instances than an order takes: nothing to select from.
        pooled_per_task=(None, 5),
        blocks=6,
        precision="bf16",
        **_PAPER,
    ),
}
