"""The head in parts gives the losses and gradients of the whole head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tma.runs.config import RunConfig
from tma.train.encode import Encoded, micro_batches
from tma.train.evaluate import arithmetic, summed_losses, tied_on_cpu, token_losses
from tma.train.loop import train

VOCABULARY = 50
ROWS = [
    Encoded(str(k), None, tuple((k + 3 * i) % VOCABULARY for i in range(n)), n - 4)
    for k, n in enumerate((9, 12, 7, 15))
]


@pytest.fixture(autouse=True)
def small_parts() -> Iterator[None]:
    with patch("tma.train.head.LOGIT_ROWS", 3), patch("tma.train.head.WEIGHT_ROWS", 16):
        yield


def llama(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def gradients(precision: str, *, parts: bool) -> dict[str, torch.Tensor]:
    model: Any = llama(tied=True)
    with arithmetic(model, precision), head_in_parts(model) if parts else nullcontext():
        for batch in micro_batches(ROWS, 30):
            summed_losses(model, batch).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_gradients_in_parts_are_those_of_the_whole_and_dense(precision: str, error: float) -> None:
    whole, parts = (gradients(precision, parts=given) for given in (False, True))
    for name, wanted in whole.items():
        assert parts[name].layout == torch.strided
        assert torch.linalg.norm(parts[name] - wanted) <= error * torch.linalg.norm(wanted), name


def test_token_losses_and_their_gradient_are_those_of_torch() -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, VOCABULARY, (8,))
    ours = torch.randn(8, VOCABULARY, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    scale = torch.rand(8)
    losses = token_losses(ours, targets)
    wanted = torch.nn.functional.cross_entropy(plain, targets, reduction="none")
    torch.testing.assert_close(losses, wanted)
    (losses * scale).sum().backward()
    (wanted * scale).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_training_in_parts_moves_the_weights_as_training_the_whole_does() -> None:
    config = RunConfig(
        model="org/tiny", dataset="pocket", order="random", limit=None, batch_size=2, max_tokens=16,
        learning_rate=1e-4, eval_every=1, micro_tokens=16, precision="fp32",
    )  # fmt: skip
    ours, plain = (llama(tied=True) for _ in range(2))
    history = train(ours, ROWS, ROWS, config)
    with patch("tma.train.loop.tied_on_cpu", return_value=False):
        wanted = train(plain, ROWS, ROWS, config)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.linalg.norm(a - b) <= 1e-6 * torch.linalg.norm(b), name
        assert a.grad is None
    for got, other in zip(history.losses, wanted.losses, strict=True):
        assert got["loss_sum"] == pytest.approx(other["loss_sum"], rel=1e-5)


def test_an_untied_model_is_left_as_it_is() -> None:
    assert tied_on_cpu(llama(tied=True))
    assert not tied_on_cpu(llama(tied=False))


def test_the_model_is_as_before_afterwards() -> None:
    model: Any = llama(tied=True)
    with head_in_parts(model):
        assert model.get_input_embeddings().sparse
    assert not model.get_input_embeddings().sparse
    assert "forward" not in vars(model.get_output_embeddings())
