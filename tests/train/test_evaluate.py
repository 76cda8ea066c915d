from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tma
from tma.train import evaluate, models
from tma.train.encode import Encoded, encode
from tma.train.evaluate import arithmetic, head_in_parts, response_losses, summed_losses
from tma.train.packing import micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY = 50


def rows(*lengths: int) -> list[Encoded]:
    return [
        Encoded(str(k), None, tuple((k + 3 * i) % VOCABULARY for i in range(n)), n - 3)
        for k, n in enumerate(lengths)
    ]


def llama(*, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "tie_word_embeddings": tied}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape, **heads))


def test_losses_are_in_the_order_of_the_instances() -> None:
    given, model = rows(9, 40, 5, 17), llama()
    packed = response_losses(model, given, 64, "fp32", packed=True)
    alone = [response_losses(model, [row], 64, "fp32")[0] for row in given]
    np.testing.assert_allclose(packed, alone, rtol=1e-5)


def test_losses_equal_those_of_all_logits_of_the_real_model(
    weights: Path, dataset_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = encode(tma.load(str(dataset_file), split="train"), tokenizer, 64)[::7]
    model = models.load(str(weights))[0]
    found = response_losses(model, given, 128, "fp32")
    for row, loss in zip(given, found, strict=True):
        tokens = torch.tensor([row.tokens])
        labels = tokens.clone()
        labels[0, : row.response_start] = -100
        with torch.inference_mode():
            expected = model(input_ids=tokens, labels=labels).loss * row.response_tokens
        assert loss == pytest.approx(float(expected), rel=1e-4)


def test_a_process_with_fewer_batches_repeats_its_last() -> None:
    with patch.object(evaluate, "gather_object", lambda own: [*own, 3, 2]):
        assert evaluate.evened(["a", "b"]) == ["a", "b", "b"]


def test_bf16_stays_near_fp32_and_auto_is_one_of_the_two() -> None:
    exact, fast = (response_losses(llama(), rows(9, 40, 17), 64, p) for p in ("fp32", "bf16"))
    assert 0 < abs(exact - fast).max() < 0.05 * exact.min()
    assert evaluate.resolve_precision("auto", torch.device("cpu")) in ("bf16", "fp32")
    assert evaluate.resolve_precision("fp32", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_a_head_in_parts_has_the_gradients_of_the_whole(precision: str, error: float) -> None:
    def gradients(*, parts: bool) -> dict[str, torch.Tensor]:
        model: Any = llama()
        with arithmetic(model, precision), head_in_parts(model) if parts else nullcontext():
            for batch in micro_batches(rows(9, 12, 7, 15), 30):
                summed_losses(model, batch).sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    with patch.object(evaluate, "LOGIT_ROWS", 3), patch.object(evaluate, "WEIGHT_ROWS", 16):
        whole, parts = gradients(parts=False), gradients(parts=True)
    for name, expected in whole.items():
        assert parts[name].layout == torch.strided
        assert torch.linalg.norm(parts[name] - expected) <= error * torch.linalg.norm(expected)


def test_token_losses_and_their_gradient_are_those_of_torch() -> None:
    torch.manual_seed(0)
    targets, scale = torch.randint(0, VOCABULARY, (8,)), torch.rand(8)
    ours = torch.randn(8, VOCABULARY, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    with patch.object(evaluate, "LOGIT_ROWS", 3):
        losses = evaluate._Losses.apply(ours, targets)
        (losses * scale).sum().backward()
    expected = torch.nn.functional.cross_entropy(plain, targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    (expected * scale).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_only_a_tied_head_is_gone_through_in_parts_and_then_restored() -> None:
    model: Any = llama()
    assert evaluate.tied_on_cpu(model)
    assert not evaluate.tied_on_cpu(llama(tied=False))
    with head_in_parts(model):
        assert model.get_input_embeddings().sparse
    assert not model.get_input_embeddings().sparse
    assert "forward" not in vars(model.get_output_embeddings())
