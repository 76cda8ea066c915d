"""Instances in an order → a fine-tuned model and its test losses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from tma.config import STRICT, Count, Number, Positive
from tma.errors import ParameterError, check_count, wrong

Tokens = Annotated[Count, Field(ge=8)]
Rate = Annotated[Number, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingSettings:
    """Every setting that decides how a model is trained and measured."""

    model: str
    """Built-in weights, hub id, or folder."""
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
    """Most tokens in a micro-batch, padding included; does not change what a step trains on."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward pass; auto: bf16 where the machine has it."""
    epochs: Positive = 1
    """Passes over the order."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the rate falls to its final ratio; constant: it does not."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel of transformers; auto: on the CPU the padding-free one of
    `tma.train.packing`, elsewhere, or if the model cannot use it, the model's own choice."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    generate_at: tuple[int, ...] = ()
    """Steps at which the test prompts are answered: 0 is before training, one past the last stands
    for the last."""
    max_new_tokens: Positive = 128
    """Most tokens of an answer."""

    @field_validator("eval_at", "generate_at", mode="before")
    @classmethod
    def _steps(cls, value: Any, info: ValidationInfo) -> tuple[int, ...]:
        name = info.field_name or ""
        if not isinstance(value, list | tuple):
            raise wrong(name, value, "a list of steps, such as [0, 10]")
        for step in value:
            check_count(name, step, 0)
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _check_tokens(self) -> TrainingSettings:
        if self.micro_tokens < self.max_tokens:
            raise ParameterError(
                f"micro_tokens={self.micro_tokens} is less than max_tokens={self.max_tokens}: "
                "one instance must fit a micro-batch. Raise the first or lower the second."
            )
        return self
