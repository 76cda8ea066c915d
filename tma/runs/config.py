"""Settings: frozen dataclasses that are checked when made and travel as JSON.

`RunConfig` holds everything that decides the numbers of one fine-tuning run: data, arrangement,
training, measuring. Nothing here imports a numerical library, so that a wrong parameter is answered
at once.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.arrange.spec import Method
from tma.config import (
    BUILT_IN,
    BUILT_IN_DATA,
    DATASETS,
    EMPTY,
    FOLDS,
    UNITS,
    check_dataset,
    check_fold,
    check_model,
    check_one_split,
    checked_caps,
    checked_columns,
    checked_names,
)
from tma.errors import ParameterError, check_choice, check_count, wrong
from tma.scales import SCALES, Scale

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

FOUND = (
    "model",
    "reward_model",
    "dataset",
    "columns",
    "by",
    "per_task",
    "test_limit",
    "empty",
    "data_seed",
    "test_dataset",
    "held_out",
    "fold",
    "twins",
    "max_instance_tokens",
)
"""Settings that say where weights and data are found and which rows are taken; in a run's key their
content stands for them."""
CHOICES = {
    "empty": EMPTY,
    "by": (None, *UNITS),
    "precision": ("auto", "bf16", "fp32"),
    "optimizer": ("adamw", "adafactor"),
    "schedule": ("cosine", "linear", "constant"),
    "attention": ("auto", "eager", "sdpa", "flash_attention_2"),
}
"""Settings of a run that are one of some values."""
COUNTS = {
    "limit": 1,
    "test_limit": 1,
    "max_instance_tokens": 1,
    "epochs": 1,
    "max_new_tokens": 1,
    "batch_size": 1,
    "eval_every": 1,
    "data_seed": 0,
    "max_tokens": 8,
    "micro_tokens": 8,
}
"""Whole numbers among the settings, each with the least it may be."""
OPTIONAL = ("limit", "test_limit", "max_instance_tokens")
"""Those that may be None."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of one fine-tuning run; training as in the paper.

    Raises:
        ParameterError: a value cannot be used; the message names it and what was expected.
    """

    model: str
    """Built-in weights, hub id, or folder."""
    dataset: str
    """Known name, hub id, file, or folder."""
    order: str
    """Name of the arrangement (see `tma.arrange`)."""
    limit: int | None
    """N, training instances wanted; TMA takes whole rounds. None: all."""
    seed: int = 0
    """Seed of every random choice of the run, save those of the data."""
    pool: int | None = None
    """Training instances that the seed draws and the order arranges; None: all there are."""
    pool_by: str = "row"
    """What is drawn: row (single instances), or task (whole tasks but for the last)."""
    measure: str = "wsd"
    """What `nearest` and `farthest` sort by: wsd, or one of the nine measures."""
    weight: float | None = None
    """w of WSD; None: mean(MD)/mean(AD)."""
    collision: str = "set"
    """TMA: set (two test instances may take the same one) or each (every one its own)."""
    within: str = "row"
    """TMA, inside a round: row (ascending row number) or similarity."""
    exact_limit: bool = False
    """TMA: cut the last round, so that just `limit` instances are taken."""
    exclude_near_duplicates: float | None = None
    """Leave out training instances with at least this cosine similarity to a test instance."""
    columns: Mapping[str, str] | None = None
    """Field → column of the dataset; None: recognised (see `tma.load`)."""
    by: str | None = None
    """What training and test must not share: task, source, or instance; None: as the dataset."""
    held_out: tuple[str, ...] | None = None
    """Tasks and source datasets that test while all others train; None: as the dataset."""
    fold: int | str | None = None
    """Which fold tests, 0 to 4 or validation, of a dataset that has folds; None: as the dataset."""
    test_dataset: str | None = None
    """Dataset of which every row tests, while every row of `dataset` trains; None: a part of
    `dataset` tests."""
    twins: float | None = None
    """Share of the test instances whose source row, under another template, takes a place in the
    seed's pool: near-duplicates by design, of the suite alone. None: none."""
    max_instance_tokens: int | None = None
    """Leave out instances with more tokens for the encoder; None: none."""
    per_task: tuple[int | None, int | None] | None = None
    """Instances a task at most, in training and in test; None: as the dataset."""
    test_limit: int | None = None
    """Test instances at most, drawn by `data_seed`; None: all."""
    empty: str = "drop"
    """What is done with rows without prompt or response: drop, or error."""
    data_seed: int = 0
    """Seed of what is held out, capped and drawn of the data."""
    batch_size: int = 16
    """Instances a step."""
    max_tokens: int = 1024
    """Tokens of an instance at most; the prompt is cut first."""
    learning_rate: float = 1e-6
    """Peak rate; no warm-up."""
    final_rate_ratio: float = 0.1
    """Rate of the last step over the peak rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    clip_norm: float = 1.0
    """Largest gradient norm of a step."""
    eval_every: int = 10
    """Steps between two evaluations; step 0 and the last are always evaluated."""
    eval_at: tuple[int, ...] = ()
    """Further steps at which the test loss is taken; those past the last do not matter."""
    micro_tokens: int = 2048
    """Tokens of a micro-batch at most, padding included; has no influence on what a step trains
    on."""
    precision: str = "auto"
    """Arithmetic of the forward pass: bf16, fp32, or auto (bf16 where the machine has it)."""
    epochs: int = 1
    """How often the order is gone through."""
    optimizer: str = "adamw"
    """adamw, or adafactor (keeps less memory)."""
    schedule: str = "cosine"
    """How the rate falls to its final ratio: cosine, linear, or constant (it does not)."""
    attention: str = "auto"
    """Attention kernel of transformers: eager, sdpa, flash_attention_2; auto: on the CPU the
    padding-free one of `tma.train.packing`, elsewhere, or if the model cannot, the model's own
    choice."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    compile: bool = False
    """Compile the model below its output head (torch.compile)."""
    generate_at: tuple[int, ...] = ()
    """Steps at which the test prompts are answered; 0 is before training, and one past the last
    stands for the last."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    reward_model: str | None = None
    """Sequence-classification model that scores answers, a hub id or a folder; None: none."""

    def __post_init__(self) -> None:
        check_model(self.model, BUILT_IN)
        check_dataset(self.dataset)
        self._check_split()
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        # Equal runs get equal settings, by which they are named.
        for name in ("generate_at", "eval_at"):
            object.__setattr__(self, name, checked_steps(name, getattr(self, name)))
        object.__setattr__(self, "per_task", checked_caps(self.per_task))
        object.__setattr__(self, "columns", checked_columns(self.columns))
        for name, least in COUNTS.items():
            if getattr(self, name) is not None or name not in OPTIONAL:
                check_count(name, getattr(self, name), least)
        _ = self.method  # refuses what does not fit together
        if self.micro_tokens < self.max_tokens:
            raise ParameterError(
                f"micro_tokens={self.micro_tokens} is less than max_tokens={self.max_tokens}: "
                "one instance must fit a micro-batch. Raise the first or lower the second."
            )
        for name in ("learning_rate", "final_rate_ratio", "weight_decay", "clip_norm"):
            check_positive(name, getattr(self, name), zero=name == "weight_decay")
        for name in ("gradient_checkpointing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise wrong(name, getattr(self, name), "true or false")
        if self.reward_model is not None:
            self._check_reward()
        if self.twins is not None:
            self._check_twins(self.twins)

    def _check_split(self) -> None:
        object.__setattr__(self, "held_out", checked_names(self.held_out))
        check_fold(self.dataset, self.fold)
        every = None
        if self.test_dataset is not None:
            check_dataset(self.test_dataset, "test_dataset")
            every = f"test_dataset={self.test_dataset!r}"
        check_one_split(every, by=self.by, held_out=self.held_out, fold=self.fold)

    def _check_twins(self, twins: object) -> None:
        fits = self.dataset in BUILT_IN_DATA and self.pool is not None and self.pool_by == "row"
        number = isinstance(twins, int | float) and not isinstance(twins, bool) and 0 < twins <= 1
        if not (number and fits):
            names = " or ".join(BUILT_IN_DATA)
            raise wrong(
                "twins", twins, f"a share in (0, 1] with dataset={names} and a pool of rows"
            )

    def _check_reward(self) -> None:
        check_model(self.reward_model, (), "reward_model")
        if not self.generate_at:
            raise ParameterError(
                f"reward_model={self.reward_model!r} has no answers to score with generate_at=(). "
                "Name steps in generate_at, such as [0, 10], or leave out reward_model."
            )

    @classmethod
    def at(
        cls, scale: str, *, order: str, model: str = "llama", seed: int = 0, **changes: Any
    ) -> RunConfig:
        """Return the settings of a scale, with changes.

        Args:
            scale: pocket, study, or paper.
            order: name of the arrangement.
            model: preset, hub id, or folder.
            seed: seed of every random choice.
            changes: any other field; `steps` stands for `limit = steps * batch_size`.

        Raises:
            ParameterError: a value cannot be used, or `steps` and `limit` are both given.
        """
        check_choice("scale", scale, tuple(SCALES))
        base = SCALES[scale]
        check_model(model, (*base.models, *BUILT_IN))
        if model in base.learning_rates:
            changes.setdefault("learning_rate", base.learning_rates[model])
        if "steps" in changes and "limit" in changes:
            raise ParameterError(
                f"steps={changes['steps']!r} and limit={changes['limit']!r} both say how many "
                "instances are trained on; give one of the two."
            )
        batch_size = changes.get("batch_size", base.batch_size)
        check_count("batch_size", batch_size, 1)
        steps, dataset = changes.pop("steps", base.steps), changes.pop("dataset", None)
        check_count("steps", steps, 1)
        apart = {"model", "dataset", "pool", "max_instance_tokens"}
        own = {f.name for f in fields(cls)} - apart
        shared = own & {f.name for f in fields(Scale)}
        settings: dict[str, Any] = {
            "dataset": base.dataset if dataset is None else dataset,
            "limit": steps * batch_size,
            **{f: getattr(base, f) for f in shared},
        }
        if (dataset or base.dataset).partition(":")[0] in FOLDS and base.folds:
            settings["max_instance_tokens"] = base.max_instance_tokens
            if not {"by", "held_out", "test_dataset"} & changes.keys():
                settings["fold"] = seed % base.folds
        weights = base.models.get(model, model)
        return cls(model=weights, order=order, seed=seed, **(settings | changes))

    @property
    def method(self) -> Method:
        """The arrangement: its name and every setting that decides it."""
        shared = [f.name for f in fields(Method) if f.name != "name"]
        return Method(self.order, **{name: getattr(self, name) for name in shared})

    @property
    def packs(self) -> bool:
        """Whether instances may be computed side by side, without padding (`tma.train.packing`)."""
        return self.attention in ("auto", "flash_attention_2") and not self.compile

    def with_whole_paths(self) -> RunConfig:
        """Return the settings with folders and files by their whole path.

        The same files are then the same run from whatever folder they are named.
        """
        local: dict[str, Any] = {
            name: str(Path(value).resolve())
            for name in ("model", "dataset", "test_dataset", "reward_model")
            if (value := getattr(self, name)) and value not in (*BUILT_IN, *DATASETS)
            if Path(value).exists()
        }
        return dataclasses.replace(self, **local)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return dataclasses.asdict(self)

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that a run's key holds, beside the content of data and weights.

        Not those that only say where data and weights are found and which rows are taken (`FOUND`):
        their content stands for them. Not those with their default value, so that a setting that is
        added later renames no finished run.
        """
        usual = {f.name: f.default for f in fields(self)}
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in FOUND and value != usual[name]
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """Return settings as they were stored; unknown and missing ones are told.

        Nothing is checked: what was run stays readable when its model or data has gone, and when a
        name is no longer known.
        """
        known = {field.name: field for field in fields(cls)}
        stored = cls.__new__(cls)
        for name, field in known.items():
            usual = None if field.default is dataclasses.MISSING else field.default
            given = value.get(name, usual)
            object.__setattr__(stored, name, tuple(given) if isinstance(given, list) else given)
        unknown, missing = [*value.keys() - known.keys()], [*known.keys() - value.keys()]
        if unknown or missing:
            log.info(
                "stored settings of another version: not known %s; not there %s",
                sorted(unknown),
                sorted(missing),
            )
        return stored


def check_positive(name: str, value: object, *, zero: bool) -> None:
    """Refuse a value that is no finite number above 0; or 0, if that is allowed."""
    least = 0.0 if zero else math.nextafter(0, 1)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # The type is known by `number`, which mypy does not follow.
    if not number or not math.isfinite(value) or value < least:  # type: ignore[arg-type,operator]
        raise wrong(name, value, "a finite number of at least 0" if zero else "a positive number")


def checked_steps(name: str, value: object) -> tuple[int, ...]:
    """Return step numbers in their sequence, each once; refuse anything else."""
    if not isinstance(value, list | tuple):
        raise wrong(name, value, "a list of steps, such as [0, 10]")
    for step in value:
        check_count(name, step, 0)
    return tuple(sorted(set(value)))


def load_both(config: RunConfig) -> tuple[Dataset, Dataset]:
    """Return the training and the test instances of a run.

    Args:
        config: the settings of the run; those of the data are used, and `max_tokens` as the length
            of prompts that are put together from parts. Twins take the last places of the pool
            that the run's seed draws.

    Raises:
        DataError, ParameterError, AssetError, StateError: as `tma.load`.
    """
    from tma.arrange.orders import drawn
    from tma.data.load import load_pair
    from tma.data.suite import with_twins

    same = ("by", "columns", "empty", "fold", "held_out", "max_instance_tokens", "per_task")
    train, test = load_pair(
        config.dataset,
        test_dataset=config.test_dataset,
        test_limit=config.test_limit,
        seed=config.data_seed,
        max_source_tokens=config.max_tokens,
        **{name: getattr(config, name) for name in same},
    )
    if config.twins is not None and config.pool is not None:
        pool = train.select(drawn(len(train), config.pool, config.seed))
        train = with_twins(pool, test, config.twins, config.data_seed)
    return train, test
