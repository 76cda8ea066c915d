from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import tma
from tma.errors import OrderError, ParameterError, TrainingError
from tma.runs.config import RunConfig
from tma.train import models
from tma.train.encode import Encoded, encode, micro_batches
from tma.train.evaluate import resolve_precision, response_losses
from tma.train.loop import check_order, learning_rate, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        model="org/tiny",
        dataset="pocket",
        order="random",
        limit=None,
        batch_size=8,
        max_tokens=64,
        learning_rate=1e-3,
        eval_every=2,
        micro_tokens=128,
        precision="fp32",
    )


@pytest.fixture
def encoded(dataset_file: Path, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode(tma.load(str(dataset_file), split="train"), tokenizer, 64)


def plain_loop(model: PreTrainedModel, rows: list[Encoded], config: RunConfig, steps: int) -> None:
    """The same training without any of its economies: all padding, all logits, one batch a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    total = math.ceil(len(rows) / config.batch_size)
    for step in range(steps):
        batch = rows[step * config.batch_size : (step + 1) * config.batch_size]
        tokens = torch.zeros(len(batch), 64, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        labels = torch.full_like(tokens, -100)
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


@pytest.mark.parametrize(
    ("attention", "batches"),
    [(("auto", 128), 2), (("sdpa", 64), 3)],
    ids=["packed", "padded"],
)
def test_three_steps_equal_those_of_a_plain_padded_loop(
    tiny_model: Path,
    encoded: list[Encoded],
    config: RunConfig,
    attention: tuple[str, int],
    batches: int,
) -> None:
    # AdamW magnifies rounding where a gradient is nearly zero, and the more the higher the rate.
    mixed = zip(encoded[:12], encoded[20:32], strict=True)  # of 14 to 23 tokens
    rows = [row for pair in mixed for row in pair]
    config = replace(config, learning_rate=1e-4)
    kernel, budget = attention
    config = replace(config, attention=kernel, micro_tokens=budget)
    assert len(micro_batches(rows[:8], budget, packed=kernel == "auto")) == batches
    ours, plain = (models.load(str(tiny_model))[0] for _ in range(2))
    train(ours, rows, encoded[24:26], config)
    plain_loop(plain, rows, config, steps=3)
    start = models.load(str(tiny_model))[0]
    for (name, a), b, c in zip(
        ours.named_parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        assert torch.linalg.norm(a - b) <= 1e-4 * torch.linalg.norm(b - c), name
        assert torch.linalg.norm(a - b) <= 1e-6 * torch.linalg.norm(b), name


def test_the_order_consumed_is_the_order_given(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    rows = encoded[::-1][:19]
    history = train(models.load(str(tiny_model))[0], rows, encoded[:3], config)
    assert history.consumed == [row.id for row in rows]
    assert [entry["step"] for entry in history.steps] == [1, 2, 3]
    assert [entry["tokens"] for entry in history.steps][2] == sum(
        row.response_tokens for row in rows[16:]
    )
    assert [entry["step"] for entry in history.losses] == [0] * 3 + [2] * 3 + [3] * 3


def test_the_loop_stops_when_a_micro_batch_loses_an_instance(
    tiny_model: Path,
    encoded: list[Encoded],
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tma.train import loop

    whole = loop.micro_batches
    monkeypatch.setattr(
        loop, "micro_batches", lambda rows, *given, **how: whole(rows[1:], *given, **how)
    )
    with pytest.raises(
        OrderError, match=f"place 0: consumed {encoded[1].id}, the order says {encoded[0].id}"
    ):
        train(models.load(str(tiny_model))[0], encoded[:16], encoded[:2], config)


def test_the_first_difference_from_the_order_is_named() -> None:
    check_order(["a", "b"], "ab")
    with pytest.raises(OrderError, match="place 1: consumed c, the order says b"):
        check_order(["a", "c"], "ab")
    with pytest.raises(OrderError, match="place 2: consumed d, the order says nothing"):
        check_order(["a", "b", "d"], "ab")
    with pytest.raises(OrderError, match="place 1: consumed nothing, the order says b"):
        check_order(["a"], "ab")


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    model = models.load(str(tiny_model))[0]
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    ids = rf"\['{encoded[0].id}', '{encoded[1].id}'\]"
    with pytest.raises(TrainingError, match=f"step 0: test loss is nan; instances {ids}"):
        train(model, encoded[:8], encoded[:2], config)


def test_a_gradient_that_is_not_finite_stops_the_run_in_its_own_step(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    model = models.load(str(tiny_model))[0]
    weight = next(iter(model.parameters()))
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: gradient norm is nan; instances \['"):
        train(model, encoded[:8], encoded[:2], config)
    assert torch.equal(weight, before)


def test_what_cannot_be_trained_is_refused(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    model = models.load(str(tiny_model))[0]
    with pytest.raises(ParameterError, match="8 training and 0 test instances; expected one"):
        train(model, encoded[:8], [], config)


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
    tiny_model: Path, dataset_file: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    plain = train(models.load(str(tiny_model))[0], encoded[:16], encoded[:2], config).steps
    done = subprocess.run(
        [sys.executable, "-c", ENVIRONMENT, tiny_model, dataset_file, json.dumps(config.to_json())],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "ACCELERATE_MIXED_PRECISION": "bf16",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8",
            "ACCELERATE_DYNAMO_BACKEND": "EAGER",
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [e["loss"] for e in found] == [e["loss"] for e in plain]


def test_a_model_that_would_not_be_split_is_refused(
    tiny_model: Path,
    encoded: list[Encoded],
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ParameterError, match="use_fsdp=True, but accelerate runs as NO"):
        train(models.load(str(tiny_model))[0], encoded[:8], encoded[:2], config)


def test_gradient_checkpointing_is_turned_on(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    model = models.load(str(tiny_model))[0]
    train(model, encoded[:8], encoded[:2], replace(config, gradient_checkpointing=True))
    assert model.is_activation_checkpointing


def test_weight_decay_shrinks_the_weights(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    norms = []
    for decay in (0.0, 10.0):
        model = models.load(str(tiny_model))[0]
        train(model, encoded[:16], encoded[:2], replace(config, weight_decay=decay))
        norms.append(float(model.get_input_embeddings().weight.detach().norm()))
    # Two steps at rates 1e-3 and 1e-4: 1 - 10 * rate is left of each weight.
    assert norms[1] / norms[0] == pytest.approx(0.99 * 0.999, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_model_gives_the_same_losses(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    losses = []
    for change in ({"compile": True}, {"attention": "sdpa"}):
        model = models.load(str(tiny_model))[0]
        history = train(model, encoded[:16], encoded[:2], replace(config, **change))
        losses.append([entry["loss"] for entry in history.steps])
        compiled = getattr(model.get_decoder(), "_compiled_call_impl", None)
        assert (compiled is not None) == ("compile" in change)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_training_learns_what_it_sees(
    tiny_model: Path, encoded: list[Encoded], config: RunConfig
) -> None:
    fast = replace(config, learning_rate=0.02)
    history = train(models.load(str(tiny_model))[0], encoded, encoded[:8], fast)
    means = [sum(e["loss_sum"] for e in history.losses if e["step"] == s) for s in (0, 4, 5)]
    assert means[2] < means[1] < 0.9 * means[0]


def test_the_rate_falls_from_its_peak_to_a_tenth(config: RunConfig) -> None:
    rates = [learning_rate(config, step, 5) for step in range(5)]
    assert rates == pytest.approx([1e-3, 8.68198e-4, 5.5e-4, 2.31802e-4, 1e-4], rel=1e-5)
    assert learning_rate(config, 0, 1) == 1e-3


def test_losses_equal_those_of_the_whole_logits_of_the_real_model(
    weights: Path, dataset_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = encode(tma.load(str(dataset_file), split="train"), tokenizer, 64)[::7]
    model = models.load(str(weights))[0]
    found = response_losses(model, rows, 128, "fp32")
    for row, loss in zip(rows, found, strict=True):
        tokens = torch.tensor([row.tokens])
        labels = tokens.clone()
        labels[0, : row.response_start] = -100
        with torch.inference_mode():
            expected = model(input_ids=tokens, labels=labels).loss * row.response_tokens
        assert loss == pytest.approx(float(expected), rel=1e-4)


def test_bf16_stays_near_fp32(tiny_model: Path, encoded: list[Encoded]) -> None:
    model = models.load(str(tiny_model))[0]
    exact, fast = (response_losses(model, encoded, 256, p) for p in ("fp32", "bf16"))
    assert abs(exact - fast).max() < 0.05 * exact.min()


def test_auto_precision_is_settled_before_training() -> None:
    assert resolve_precision("auto", torch.device("cpu")) in ("bf16", "fp32")
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"


USED = """
import sys
from accelerate import Accelerator
import tma
from tma.runs.config import RunConfig
from tma.errors import ParameterError
Accelerator(mixed_precision="bf16", cpu=True)
try:
    tma.run(RunConfig.from_json(__import__("json").loads(sys.argv[1])))
except ParameterError as error:
    print(error)
"""


def test_accelerate_that_was_set_up_otherwise_is_one_message(twelve_steps: RunConfig) -> None:
    given = json.dumps(replace(twelve_steps, seed=77).to_json())
    shown = subprocess.check_output([sys.executable, "-c", USED, given], text=True)
    assert "another program of this process has set up accelerate otherwise" in shown
