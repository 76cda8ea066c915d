"""Everything that decides the numbers of one fine-tuning run, checked when made.

No numerical library is imported here but numpy, so that a wrong setting is answered at once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from tma.arrange.spec import Method, OrderSettings
from tma.config import (
    BUILT_IN,
    BUILT_IN_DATA,
    DATASETS,
    FOLDS,
    SCALES,
    STRICT,
    Caps,
    Count,
    Number,
    Scale,
    check_dataset,
    check_fold,
    check_model,
    check_one_split,
    checked_caps,
    checked_columns,
    checked_names,
    refusing,
)
from tma.errors import ParameterError, check_choice, check_count, wrong

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

NOT_IN_KEY = (
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
"""Settings that say where weights and data are found and which rows are taken; in a run's key the
content of weights and data stands for them."""

Positive = Annotated[Count, Field(ge=1)]
Tokens = Annotated[Count, Field(ge=8)]
Rate = Annotated[Number, Field(gt=0)]


@refusing
@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig(OrderSettings):
    """Everything that decides the numbers of one fine-tuning run; defaults as in the paper.

    The settings of the order itself (`seed`, `pool`, `within`, …) are those of `tma.Method`.

    Raises:
        ParameterError: a value cannot be used; the message names it and what was expected.
    """

    model: str
    """Built-in weights, hub id, or folder."""
    dataset: str
    """Known name, hub id, file, or folder."""
    order: str
    """Name of the order (see `tma.arrange`)."""
    limit: Positive | None = field()
    """N, training instances; TMA takes whole rounds. None: all."""
    columns: Mapping[str, str] | None = None
    """Field → column of the dataset; None: recognised (see `tma.load`)."""
    by: Literal["task", "source", "instance"] | None = None
    """What training and test must not share; None: as the dataset."""
    held_out: tuple[str, ...] | None = None
    """Tasks and source datasets that test while all others train; None: as the dataset."""
    fold: int | str | None = None
    """Fold that tests, 0 to 4 or validation, of a dataset with folds; None: as the dataset."""
    test_dataset: str | None = None
    """Dataset of which every row tests, while every row of `dataset` trains; None: a part of
    `dataset` tests."""
    twins: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Share of the test instances whose source row, under another template, takes a place in the
    seed's pool: near-duplicates by design, for the suite alone. None: none."""
    max_instance_tokens: Positive | None = None
    """Leave out instances with more tokens for the encoder; None: none."""
    per_task: Caps | None = None
    """Most instances per task, in training and in test; None: as the dataset."""
    test_limit: Positive | None = None
    """Most test instances, drawn by `data_seed`; None: all."""
    empty: Literal["drop", "error"] = "drop"
    """What happens to rows without prompt or response."""
    data_seed: Count = 0
    """Seed of what is held out, capped and drawn of the data."""
    batch_size: Positive = 16
    """Instances per step."""
    max_tokens: Tokens = 1024
    """Most tokens of an instance; the prompt is cut first."""
    learning_rate: Rate = 1e-6
    """Peak rate; no warm-up."""
    final_rate_ratio: Rate = 0.1
    """Rate of the last step over the peak rate."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    clip_norm: Rate = 1.0
    """Largest gradient norm of a step."""
    eval_every: Positive = 10
    """Steps between two evaluations; step 0 and the last are always evaluated."""
    eval_at: tuple[int, ...] = ()
    """Further steps that are evaluated; those past the last are ignored."""
    micro_tokens: Tokens = 2048
    """Most tokens in a micro-batch, padding included; without influence on what a step trains on.
    """
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward pass; auto: bf16 where the machine has it."""
    epochs: Positive = 1
    """Passes over the order."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor keeps less memory."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to its final ratio; constant: it does not."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel of transformers; auto: on the CPU the padding-free one of
    `tma.train.packing`, elsewhere, or if the model cannot use it, the model's own choice."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    compile: bool = False
    """Compile the model below its output head (torch.compile)."""
    generate_at: tuple[int, ...] = ()
    """Steps at which the test prompts are answered: 0 is before training, one past the last stands
    for the last."""
    max_new_tokens: Positive = 128
    """Most tokens of an answer."""
    reward_model: str | None = None
    """Sequence-classification model that scores answers, a hub id or a folder; None: none."""

    @field_validator("model", "reward_model", "dataset", "test_dataset", mode="before")
    @classmethod
    def _check_place(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if value is None and name in ("reward_model", "test_dataset"):
            return None
        if name.endswith("model"):
            check_model(value, BUILT_IN if name == "model" else (), name)
        else:
            check_dataset(value, name)
        return value

    @field_validator("fold", mode="before")
    @classmethod
    def _check_fold(cls, value: Any, info: ValidationInfo) -> Any:
        check_fold(info.data.get("dataset", ""), value)
        return value

    @field_validator("eval_at", "generate_at", mode="before")
    @classmethod
    def _steps(cls, value: Any, info: ValidationInfo) -> tuple[int, ...]:
        name = info.field_name or ""
        if not isinstance(value, list | tuple):
            raise wrong(name, value, "a list of steps, such as [0, 10]")
        for step in value:
            check_count(name, step, 0)
        return tuple(sorted(set(value)))

    _names = field_validator("held_out", mode="before")(checked_names)
    _columns = field_validator("columns", mode="before")(checked_columns)
    _caps = field_validator("per_task", mode="before")(checked_caps)

    @model_validator(mode="after")
    def _check_together(self) -> RunConfig:
        """Refuse settings that contradict each other."""
        every = None if self.test_dataset is None else f"test_dataset={self.test_dataset!r}"
        check_one_split(every, by=self.by, held_out=self.held_out, fold=self.fold)
        _ = self.method  # refuses settings of another order
        if self.micro_tokens < self.max_tokens:
            raise ParameterError(
                f"micro_tokens={self.micro_tokens} is less than max_tokens={self.max_tokens}: "
                "one instance must fit a micro-batch. Raise the first or lower the second."
            )
        if self.reward_model is not None and not self.generate_at:
            raise ParameterError(
                f"reward_model={self.reward_model!r} has no answers to score with generate_at=(). "
                "Name steps in generate_at, such as [0, 10], or leave out reward_model."
            )
        by_rows = self.pool is not None and self.pool_by == "row"
        if self.twins is not None and not (self.dataset in BUILT_IN_DATA and by_rows):
            expected = f"dataset={' or '.join(BUILT_IN_DATA)} and a pool of rows with it"
            raise wrong("twins", self.twins, expected)
        return self

    @classmethod
    def at(
        cls, scale: str, *, order: str, model: str = "llama", seed: int = 0, **changes: Any
    ) -> RunConfig:
        """Return the settings of a scale, with changes.

        Args:
            scale: pocket, study, or paper.
            order: name of the order.
            model: preset, hub id, or folder.
            seed: seed of every random choice.
            changes: any other field; `steps` stands for `limit = steps * batch_size`.

        Raises:
            ParameterError: a value cannot be used, or `steps` and `limit` are both given.
        """
        check_choice("scale", scale, tuple(SCALES))
        base = SCALES[scale]
        check_model(model, (*base.models, *BUILT_IN))
        if "steps" in changes and "limit" in changes:
            raise ParameterError(
                f"steps={changes['steps']!r} and limit={changes['limit']!r} both say how many "
                "instances are trained on; give one of the two."
            )
        steps = changes.pop("steps", base.steps)
        batch_size = changes.get("batch_size", base.batch_size)
        check_count("steps", steps, 1)
        check_count("batch_size", batch_size, 1)
        check_count("seed", seed, 0)
        if changes.get("dataset") is None:
            changes["dataset"] = base.dataset
        settings = cls._of_scale(base, model) | {"limit": steps * batch_size}
        if base.folds and str(changes["dataset"]).partition(":")[0] in FOLDS:
            settings["max_instance_tokens"] = base.max_instance_tokens
            if not {"by", "held_out", "test_dataset"} & changes.keys():
                settings["fold"] = seed % base.folds
        return cls(**(settings | {"order": order, "seed": seed} | changes))

    @classmethod
    def _of_scale(cls, base: Scale, model: str) -> dict[str, Any]:
        """Return the settings that a scale shares with runs."""
        shared = {f.name for f in fields(cls)} & {f.name for f in fields(Scale)}
        shared -= {"dataset", "pool", "max_instance_tokens"}
        rate = base.learning_rates.get(model, base.learning_rate)
        own = {"model": base.models.get(model, model), "learning_rate": rate}
        return {name: getattr(base, name) for name in shared} | own

    @property
    def method(self) -> Method:
        """The order with all of its settings."""
        shared = {f.name: getattr(self, f.name) for f in fields(OrderSettings)}
        return Method(name=self.order, **shared)

    @property
    def packs(self) -> bool:
        """Whether instances may be computed side by side, without padding (`tma.train.packing`)."""
        return self.attention in ("auto", "flash_attention_2") and not self.compile

    def with_absolute_paths(self) -> RunConfig:
        """Return the settings with local folders and files by their absolute path."""
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
        """The settings in a run's key, beside the content of data and weights.

        Defaults are left out, so that a setting added later renames no finished run.
        """
        usual = {f.name: f.default for f in fields(self)}
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in NOT_IN_KEY and value != usual[name]
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """Return stored settings without checking them; unknown and missing ones are logged.

        A run stays readable when its model or data is gone, or a name is no longer known.
        """
        known = {f.name: f for f in fields(cls)}
        stored = cls.__new__(cls)
        for name, own in known.items():
            usual = None if own.default is dataclasses.MISSING else own.default
            given = value.get(name, usual)
            object.__setattr__(stored, name, tuple(given) if isinstance(given, list) else given)
        unknown, missing = [*value.keys() - known.keys()], [*known.keys() - value.keys()]
        if unknown or missing:
            log.info("stored settings: unknown %s; missing %s", sorted(unknown), sorted(missing))
        return stored


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
