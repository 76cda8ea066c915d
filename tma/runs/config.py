"""Everything that decides the numbers of one fine-tuning run, checked when made.

No numerical library is imported here but numpy, so that a wrong setting is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from tma.arrange.spec import Method, OrderSettings
from tma.config import (
    BUILT_IN_DATA,
    FOLDS,
    SCALES,
    STRICT,
    Caps,
    Count,
    Number,
    Positive,
    Scale,
    check_fold,
    check_model,
    check_one_split,
    checked_caps,
    checked_columns,
    checked_names,
    plain,
    refusing,
)
from tma.data.assets import BUILT_IN
from tma.data.registry import DATASETS, check_dataset
from tma.encoders import ENCODERS, check_encoder
from tma.errors import ParameterError, check_choice, check_count, wrong
from tma.train import TrainingSettings

if TYPE_CHECKING:
    from datasets import Dataset


_DATASETS = ("dataset", "test_dataset", "arrange_for")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataSettings:
    """Where the data is found and which of its rows train and test."""

    dataset: str
    """Known name, hub id, file, or folder."""
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
    arrange_for: str | None = None
    """Dataset for which the order is made, every row, with answers or without; None: for the rows
    that test."""
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

    @field_validator(*_DATASETS, mode="before")
    @classmethod
    def _check_dataset(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None or info.field_name == "dataset":
            check_dataset(value, info.field_name or "")
        return value

    @field_validator("fold", mode="before")
    @classmethod
    def _check_fold(cls, value: Any, info: ValidationInfo) -> Any:
        check_fold(info.data.get("dataset", ""), value)
        return value

    _names = field_validator("held_out", mode="before")(checked_names)
    _columns = field_validator("columns", mode="before")(checked_columns)
    _caps = field_validator("per_task", mode="before")(checked_caps)

    @model_validator(mode="after")
    def _check_split(self) -> DataSettings:
        every = None if self.test_dataset is None else f"test_dataset={self.test_dataset!r}"
        check_one_split(every, by=self.by, held_out=self.held_out, fold=self.fold)
        return self


NOT_IN_KEY = {"model", "reward_model", "encoder", *(f.name for f in fields(DataSettings))}
"""Settings for which, in a run's key, the content of weights and data stands."""


@refusing
@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig(DataSettings, TrainingSettings, OrderSettings):
    """Everything that decides the numbers of one fine-tuning run; defaults as in the paper.

    The settings of the order itself (`seed`, `pool`, `within`, …) are those of `tma.Method`, those
    of training are in `tma.train.TrainingSettings`, those of the data in `DataSettings`.

    Raises:
        ParameterError: a value cannot be used; the message names it and what was expected.
    """

    order: str
    """Name of the order (see `tma.arrange`)."""
    limit: Positive | None = field()
    """N, training instances; TMA takes whole rounds. None: all."""
    reward_model: str | None = None
    """Sequence-classification model that scores answers, a hub id or a folder; None: none."""
    encoder: str | None = None
    """Name, hub id or folder of the embedding model, or "train.npy,test.npy" (see
    `tma.encoders.find_encoder`); None: all-MiniLM-L6-v2."""

    @field_validator("model", "reward_model", mode="before")
    @classmethod
    def _check_model(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "model":
            check_model(value, tuple(BUILT_IN))
        elif value is not None:
            check_model(value, (), "reward_model")
        return value

    @field_validator("encoder", mode="after")
    @classmethod
    def _check_encoder(cls, value: str | None) -> str | None:
        if value is not None:
            check_encoder(value)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> RunConfig:
        """Refuse settings that contradict each other."""
        _ = self.method  # refuses settings of another order
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
            seed: seed of every random choice; where the scale has folds, also the fold that tests.
            changes: any other field; `steps` stands for `limit = steps * batch_size`.

        Raises:
            ParameterError: a value cannot be used, or `steps` and `limit` are both given.
        """
        check_choice("scale", scale, tuple(SCALES))
        base = SCALES[scale]
        check_model(model, (*base.models, *BUILT_IN))
        seed, changes = plain(seed), {name: plain(value) for name, value in changes.items()}
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
        shared = {f.name for f in fields(cls)} & {f.name for f in fields(Scale)}
        settings = {name: getattr(base, name) for name in shared - {"pool", "max_instance_tokens"}}
        settings["model"] = base.models.get(model, model)
        settings["learning_rate"] = base.learning_rates.get(model, base.learning_rate)
        settings["limit"] = steps * batch_size
        if base.folds and str(changes["dataset"]).partition(":")[0] in FOLDS:
            settings["max_instance_tokens"] = base.max_instance_tokens
            if not {"by", "held_out", "test_dataset"} & changes.keys():
                settings["fold"] = seed % base.folds
        return cls(**(settings | {"order": order, "seed": seed} | changes))

    @property
    def method(self) -> Method:
        """The order with all of its settings."""
        shared = {f.name: getattr(self, f.name) for f in fields(OrderSettings)}
        return Method(name=self.order, **shared)

    def with_absolute_paths(self) -> RunConfig:
        """Return the settings with local folders and files by their absolute path."""
        local: dict[str, Any] = {
            name: str(Path(value).resolve())
            for name in ("model", "reward_model", "encoder", *_DATASETS)
            if (value := getattr(self, name)) and value not in (*BUILT_IN, *DATASETS, *ENCODERS)
            if Path(value).exists()
        }
        return replace(self, **local)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return asdict(self)

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings in a run's key, beside the content of data and weights.

        Defaults are left out, so that a setting added later renames no finished run.
        """
        defaults = {f.name: f.default for f in fields(self)}
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in NOT_IN_KEY and value != defaults[name]
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """Return stored settings without checking them: their model or data may be gone."""
        stored = cls.__new__(cls)
        for own in fields(cls):
            default = None if own.default is MISSING else own.default
            given = value.get(own.name, default)
            object.__setattr__(stored, own.name, tuple(given) if isinstance(given, list) else given)
        return stored


def load_both(config: RunConfig) -> tuple[Dataset, Dataset]:
    """Return the training and the test instances of a run; raises what `tma.load` does.

    Twins take the last places of the pool that the run's seed draws.
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


def load_aim(config: RunConfig, test: Dataset) -> Dataset:
    """Return the instances for which the order is made: of `arrange_for`, else those that test."""
    if config.arrange_for is None:
        return test
    from tma.data.load import load

    return load(
        config.arrange_for,
        columns=config.columns,
        answers="optional",
        max_instance_tokens=config.max_instance_tokens,
        empty=config.empty,
        seed=config.data_seed,
        max_source_tokens=config.max_tokens,
    )
