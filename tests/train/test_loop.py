from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tma
from tma.errors import OrderError, ParameterError, TrainingError
from tma.runs.config import RunConfig
from tma.train import loop, models
from tma.train.checkpoint import History
from tma.train.encode import Encoded, encode
from tma.train.loop import check_order, learning_rate, train
from tma.train.packing import micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture
def config() -> RunConfig:
    named = {"model": "org/tiny", "dataset": "pocket", "order": "random", "precision": "fp32"}
    sizes = {"batch_size": 8, "max_tokens": 64, "micro_tokens": 128, "eval_every": 2}
    return RunConfig(**named, **sizes, limit=None, learning_rate=1e-3)


@pytest.fixture
def encoded(dataset_file: Path, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode(tma.load(str(dataset_file), split="train"), tokenizer, 64)


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return models.load(str(tiny_model))[0]


def plain_loop(model: PreTrainedModel, rows: list[Encoded], config: RunConfig, steps: int) -> None:
    """The same training without any of its economies: all padding, all logits, one batch a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    total = math.ceil(len(rows) / config.batch_size)
    for step in range(steps):
        batch = rows[step * config.batch_size : (step + 1) * config.batch_size]
        tokens = torch.zeros(len(batch), 64, dtype=torch.long)
        mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
        for r, row in enumerate(batch):
            ids = torch.tensor(row.tokens)
            tokens[r, : len(ids)], mask[r, : len(ids)] = ids, 1
            labels[r, row.response_start : len(ids)] = ids[row.response_start :]
        logits = model(input_ids=tokens, attention_mask=mask).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        )
        losses.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step, total)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("kernel", ["auto", "sdpa"], ids=["packed", "padded"])
def test_three_steps_equal_those_of_a_plain_padded_loop(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig, kernel: str, tied: bool
) -> None:
    budget, batches = {"auto": (128, 2), "sdpa": (64, 3)}[kernel]
    mixed = zip(encoded[:12], encoded[20:32], strict=True)  # of 14 to 23 tokens
    rows = [row for pair in mixed for row in pair]
    # AdamW magnifies rounding where a gradient is nearly zero, and the more the higher the rate.
    config = replace(config, learning_rate=1e-4, attention=kernel, micro_tokens=budget)
    assert len(micro_batches(rows[:8], budget, packed=kernel == "auto")) == batches
    ours, plain, start = (models.load(str(tiny_model))[0] for _ in range(3))
    for made in (ours, plain, start) if tied else ():
        made.get_output_embeddings().weight = made.get_input_embeddings().weight
    train(ours, rows, encoded[24:26], config)
    plain_loop(plain, rows, config, steps=3)
    for (name, a), b, c in zip(
        ours.named_parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        assert a.grad is None
        assert torch.linalg.norm(a - b) <= 1e-4 * torch.linalg.norm(b - c), name
        assert torch.linalg.norm(a - b) <= 1e-6 * torch.linalg.norm(b), name


def test_the_order_consumed_is_the_order_given(
    model: Any, encoded: list[Encoded], config: RunConfig
) -> None:
    rows = encoded[::-1][:19]
    history = train(model, rows, encoded[:3], config)
    assert history.consumed == [row.id for row in rows]
    assert [entry["step"] for entry in history.steps] == [1, 2, 3]
    assert history.steps[2]["tokens"] == sum(row.response_tokens for row in rows[16:])
    assert [entry["step"] for entry in history.losses] == [0] * 3 + [2] * 3 + [3] * 3


def test_the_loop_stops_when_a_micro_batch_loses_an_instance(
    model: Any, encoded: list[Encoded], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop, "micro_batches", lambda rows, *a, **k: micro_batches(rows[1:], *a, **k)
    )
    first, second = encoded[0].id, encoded[1].id
    with pytest.raises(OrderError, match=f"place 0: consumed {second}, the order says {first}"):
        train(model, encoded[:16], encoded[:2], config)


def test_the_first_difference_from_the_order_is_named() -> None:
    check_order(["a", "b"], "ab")
    for consumed, place, got, given in (
        ("ac", 1, "c", "b"),
        ("abd", 2, "d", "nothing"),
        ("a", 1, "nothing", "b"),
    ):
        with pytest.raises(
            OrderError, match=f"place {place}: consumed {got}, the order says {given}"
        ):
            check_order(consumed, "ab")


def test_what_is_not_finite_stops_the_run_in_its_own_step(
    model: Any, encoded: list[Encoded], config: RunConfig
) -> None:
    weight = next(iter(model.parameters()))
    before = weight.detach().clone()
    hook = weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: gradient norm is nan; instances \['"):
        train(model, encoded[:8], encoded[:2], config)
    assert torch.equal(weight, before)
    hook.remove()
    with torch.no_grad():
        weight.fill_(float("nan"))
    ids = rf"\['{encoded[0].id}', '{encoded[1].id}'\]"
    with pytest.raises(TrainingError, match=f"step 0: test loss is nan; instances {ids}"):
        train(model, encoded[:8], encoded[:2], config)


def test_a_model_that_would_not_be_split_is_refused(
    model: Any, encoded: list[Encoded], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ParameterError, match="use_fsdp=True, but accelerate runs as NO"):
        train(model, encoded[:8], encoded[:2], config)


ENVIRONMENT = """
import json, sys, tma
from tma.train import encode, models
from tma.runs.config import RunConfig
from tma.train.loop import train
model, tokenizer = models.load(sys.argv[1])
rows = encode.encode(tma.load(sys.argv[2], split="train"), tokenizer, 64)
config = RunConfig.from_json(json.loads(sys.argv[3]))
print(json.dumps(train(model, rows[:16], rows[:2], config).steps))
"""


def test_settings_of_accelerate_change_no_numbers(
    tiny_model: Path, dataset_file: Path, model: Any, encoded: list[Encoded], config: RunConfig
) -> None:
    plain = train(model, encoded[:16], encoded[:2], config).steps
    changed = {
        "MIXED_PRECISION": "bf16",
        "DYNAMO_BACKEND": "EAGER",
        "GRADIENT_ACCUMULATION_STEPS": "8",
    }
    environment = os.environ | {f"ACCELERATE_{name}": value for name, value in changed.items()}
    command = [sys.executable, "-c", ENVIRONMENT, str(tiny_model), str(dataset_file)]
    found = subprocess.check_output([*command, json.dumps(config.to_json())], env=environment)
    assert [e["loss"] for e in json.loads(found)] == [e["loss"] for e in plain]


@pytest.fixture
def trained(tiny_model: Path, encoded: list[Encoded], config: RunConfig) -> Any:
    """Train on 16 instances with some settings; return the history and the model."""

    def made(**changes: Any) -> tuple[History, Any]:
        model = models.load(str(tiny_model), changes.get("attention", "auto"))[0]
        return train(model, encoded[:16], encoded[:2], replace(config, **changes)), model

    return made


def losses(history: History) -> list[float]:
    return [entry["loss"] for entry in history.steps]


@pytest.mark.parametrize(
    ("change", "error"),
    [({"attention": "eager"}, 1e-4), ({"gradient_checkpointing": True}, 1e-5)],
    ids=str,
)
def test_other_arithmetic_gives_the_same_losses(
    trained: Any, change: dict[str, Any], error: float
) -> None:
    history, model = trained(**change)
    assert model.is_activation_checkpointing == ("gradient_checkpointing" in change)
    assert (model.config._attn_implementation == "eager") == ("attention" in change)
    assert losses(history) == pytest.approx(losses(trained()[0]), abs=error)


def test_weight_decay_shrinks_the_weights(trained: Any) -> None:
    plain, shrunk = (
        float(trained(weight_decay=decay)[1].get_input_embeddings().weight.detach().norm())
        for decay in (0.0, 10.0)
    )
    # Two steps at rates 1e-3 and 1e-4: 1 - 10 * rate is left of each weight.
    assert shrunk / plain == pytest.approx(0.99 * 0.999, abs=1e-3)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", [1e-3, 8.68198e-4, 5.5e-4, 2.31802e-4, 1e-4]),
        ("constant", [1e-3] * 5),
    ],
)
def test_the_rate_falls_from_its_peak_to_a_tenth(
    config: RunConfig, schedule: str, rates: list[float]
) -> None:
    config = replace(config, schedule=schedule)
    assert [learning_rate(config, step, 5) for step in range(5)] == pytest.approx(rates, rel=1e-5)
    assert learning_rate(config, 0, 1) == 1e-3
