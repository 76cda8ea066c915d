"""Settings: frozen dataclasses that are checked when made and travel as JSON.

`Scale` holds what the study's three sizes set, `StudyConfig` the parameters of a notebook, and
`RunConfig` everything that decides the numbers of one fine-tuning run. Nothing here imports a
numerical library, so that a wrong parameter is answered at once.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tma.errors import ParameterError, check_choice, check_count, choices, wrong
from tma.method import SHUFFLED, order_name
from tma.names import BUILT_IN, DATA_SUFFIXES, DATASETS, check_dataset, check_model

CHOICES = {
    "precision": ("auto", "bf16", "fp32"),
    "optimizer": ("adamw", "adafactor"),
    "schedule": ("cosine", "linear", "constant"),
    "attention": ("auto", "eager", "sdpa", "flash_attention_2"),
}
"""Settings of a run that are one of some names."""


@dataclass(frozen=True)
class Scale:
    """What a scale of the study sets when the caller does not."""

    purpose: str
    """For whom it is."""
    models: Mapping[str, str]
    """Preset name to built-in weights or hub id."""
    dataset: str | None
    """Name of the dataset; None where the caller must give one."""
    steps: int
    """Training steps wanted."""
    batch_size: int
    """Instances a step."""
    max_tokens: int
    """Tokens of an instance at most."""
    learning_rate: float
    """Peak rate of AdamW."""
    eval_every: int
    """Steps between two evaluations."""
    micro_tokens: int
    """Tokens of a micro-batch at most, padding included."""
    precision: str = "auto"
    """Arithmetic of the forward pass: bf16, fp32, or auto (bf16 where the machine has it)."""


_SMALL = {"llama": "smollm2-135m-instruct", "gemma": "gemma-3-270m", "qwen": "Qwen/Qwen2.5-0.5B"}
_LARGE = {
    "llama": "meta-llama/Llama-2-7b-hf",
    "gemma": "google/gemma-7b",
    "qwen": "Qwen/Qwen2.5-7B",
}

SCALES: dict[str, Scale] = {
    "pocket": Scale("minutes on two CPU cores", _SMALL, "pocket", 16, 16, 256, 1e-4, 5, 1024),
    "study": Scale("under an hour on one GPU", _SMALL, None, 200, 16, 1024, 2e-5, 10, 16384),
    "paper": Scale("the paper's settings", _LARGE, None, 1800, 16, 1024, 1e-6, 10, 16384, "bf16"),
}


@dataclass(frozen=True)
class StudyConfig:
    """The parameters that all notebooks share.

    Raises:
        ParameterError: a value cannot be used; the message names the parameter and the choices.
    """

    model: str
    """Preset (llama, gemma, qwen), hub id, or folder."""
    scale: str
    """pocket, study, or paper."""
    dataset: str
    """Known name, hub id, file, or folder."""
    seeds: int
    """Number of seeds, 0, 1, …, of the orders that are shuffled."""
    steps: int
    """Training steps wanted."""
    output_dir: str
    """Folder for the figures and tables."""

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, tuple(SCALES))
        check_model(self.model, tuple(SCALES[self.scale].models))
        check_dataset(self.dataset)
        check_count("seeds", self.seeds, 1)
        check_count("steps", self.steps, 1)
        if not isinstance(self.output_dir, str) or Path(self.output_dir).is_file():
            raise wrong("output_dir", self.output_dir, "the name of a folder")

    @property
    def out(self) -> Path:
        """The output folder, made when first asked for."""
        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def runs(self, order: str, **changes: Any) -> list[RunConfig]:
        """Return the run settings of one order: one a seed where the order depends on it."""
        settings: dict[str, Any] = {
            "model": self.model,
            "dataset": self.dataset,
            "steps": self.steps,
        } | changes
        return [
            RunConfig.at(self.scale, order=order, seed=seed, **settings)
            for seed in range(self.seeds if order in SHUFFLED else 1)
        ]


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
    """Seed of every random choice of the run."""
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
    padding-free one of `tma.packing`, elsewhere or if the model cannot, the model's own choice."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    compile: bool = False
    """Compile the model below its output head (torch.compile)."""
    generate_at: tuple[int, ...] = ()
    """Steps at which the test prompts are answered; 0 is before training."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    reward_model: str | None = None
    """Sequence-classification model that scores answers, a hub id or a folder; None: none."""

    def __post_init__(self) -> None:
        check_model(self.model, BUILT_IN)
        check_dataset(self.dataset)
        order_name(self.order)
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        if not isinstance(self.generate_at, list | tuple):
            raise wrong("generate_at", self.generate_at, "a list of steps, such as [0, 10]")
        object.__setattr__(self, "generate_at", tuple(self.generate_at))
        for step in self.generate_at:
            check_count("generate_at", step, 0)
        for name, least in (
            ("epochs", 1),
            ("max_new_tokens", 1),
            ("batch_size", 1),
            ("eval_every", 1),
            ("seed", 0),
            ("max_tokens", 8),
            ("micro_tokens", 8),
        ):
            check_count(name, getattr(self, name), least)
        if self.limit is not None:
            check_count("limit", self.limit, 1)
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
            check_model(self.reward_model, (), "reward_model")

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
        """
        check_choice("scale", scale, tuple(SCALES))
        base = SCALES[scale]
        batch_size = changes.get("batch_size", base.batch_size)
        steps = changes.pop("steps", base.steps)
        check_count("steps", steps, 1)
        shared = {f.name for f in fields(Scale)} & {f.name for f in fields(cls)} - {"dataset"}
        settings: dict[str, Any] = {
            "dataset": own_dataset(scale, changes.pop("dataset", None)),
            "limit": steps * batch_size,
            **{f: getattr(base, f) for f in shared},
        }
        weights = base.models.get(model, model)
        return cls(model=weights, order=order, seed=seed, **(settings | changes))

    @property
    def packs(self) -> bool:
        """Whether instances may be computed side by side, without padding (`tma.packing`)."""
        return self.attention in ("auto", "flash_attention_2") and not self.compile

    def with_whole_paths(self) -> RunConfig:
        """Return the settings with folders and files by their whole path.

        The same files are then the same run from whatever folder they are named.
        """
        local: dict[str, Any] = {
            name: str(Path(value).resolve())
            for name in ("model", "dataset", "reward_model")
            if (value := getattr(self, name)) and value not in (*BUILT_IN, *DATASETS)
            if Path(value).exists()
        }
        return dataclasses.replace(self, **local)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """Return settings from what `to_json` gave."""
        return cls(**value)


def own_dataset(scale: str, dataset: str | None) -> str:
    """Return the dataset asked for, or the scale's own."""
    chosen = SCALES[scale].dataset if dataset is None else dataset
    if chosen is None:
        raise ParameterError(
            f"dataset=None: scale '{scale}' has no data of its own yet. Give a hub id or a "
            f"{'/'.join(DATA_SUFFIXES)} file, or one of: {', '.join(DATASETS)}."
        )
    return chosen


PARAMETERS = ("model", "scale", "dataset", "seeds", "steps", "output_dir")
"""Names of the notebook parameters."""


def study_settings(namespace: Mapping[str, Any]) -> StudyConfig:
    """Return a notebook's checked parameters; call it in the first cell after them.

    Args:
        namespace: the notebook's `globals()`. Papermill only warns of a parameter that the
            notebook does not know; here such a name is refused.

    Raises:
        ParameterError: a name or a value cannot be used.
    """
    for name in _injected(namespace.get("In", ())):
        if name not in PARAMETERS:
            raise wrong("parameter name", name, choices(PARAMETERS, name))
    values: dict[str, Any] = {name: namespace.get(name) for name in PARAMETERS}
    scale = values["scale"]
    check_choice("scale", scale, tuple(SCALES))
    values["dataset"] = own_dataset(scale, values["dataset"])
    if values["steps"] is None:
        values["steps"] = SCALES[scale].steps
    return StudyConfig(**values)


def _injected(cells: Sequence[str]) -> list[str]:
    """Return the names that papermill's cell assigns, from the sources of the cells that ran."""
    own = [cell for cell in cells if cell.startswith("# Parameters\n")]
    found = [node for cell in own for node in ast.walk(ast.parse(cell))]
    return [n.id for n in found if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def check_positive(name: str, value: object, *, zero: bool) -> None:
    """Refuse a value that is no finite number above 0; or 0, if that is allowed."""
    least = 0.0 if zero else math.nextafter(0, 1)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least:  # type: ignore[arg-type,operator]
        raise wrong(name, value, "a finite number of at least 0" if zero else "a positive number")
