from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from tma.train.encode import Encoded
from tma.train.evaluate import arithmetic, summed_losses
from tma.train.packing import BATCH_COST, attend, borders, grouped, micro_batches, packs

CPU = torch.device("cpu")


def instances(*shapes: tuple[int, int]) -> list[Encoded]:
    """Instances of some lengths whose responses begin at some positions."""
    return [
        Encoded(str(k), None, tuple(range(100 * k, 100 * k + length)), start)
        for k, (length, start) in enumerate(shapes)
    ]


def test_each_response_token_is_predicted_from_the_token_before_it() -> None:
    [batch] = micro_batches(instances((5, 3), (4, 2)), 64)
    assert (batch.members, [row.id for row in batch.instances]) == ((0, 1), ["0", "1"])
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4], [100, 101, 102, 103, 0]]
    row, position = batch.places
    assert (row.tolist(), position.tolist()) == ([0, 0, 1, 1], [2, 3, 1, 2])
    assert batch.targets.tolist() == [3, 4, 102, 103]


def test_packed_instances_follow_each_other_without_padding() -> None:
    [batch] = micro_batches(instances((4, 2), (5, 3), (3, 1)), 64, packed=True)
    assert (batch.members, batch.packed) == ((1, 0, 2), True)
    assert batch.tokens.tolist() == [[100, 101, 102, 103, 104, 0, 1, 2, 3, 200, 201, 202]]
    assert batch.places[0].tolist() == [0] * 6
    assert batch.places[1].tolist() == [2, 3, 6, 7, 9, 10]
    assert batch.targets.tolist() == [103, 104, 2, 3, 201, 202]
    assert batch.owners.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_budget_counts_padding_or_packed_tokens() -> None:
    assert grouped([10, 9, 8], 20) == [(0, 1), (2,)]
    assert grouped([10, 9, 1000, 8], 19, packed=True) == [(2,), (0, 1), (3,)]
    assert grouped([10, 1], 20, batch_cost=8) == [(0,), (1,)]
    assert grouped([10, 1], 20, batch_cost=10) == [(0, 1)]


@given(st.lists(st.integers(2, 300), min_size=1, max_size=9), st.integers(300, 900), st.booleans())
def test_the_grouping_is_the_cheapest_of_all(lengths: list[int], budget: int, packed: bool) -> None:
    falling = sorted(lengths, reverse=True)

    def cost(cuts: list[int]) -> float:
        groups = [falling[start:end] for start, end in itertools.pairwise(cuts)]
        tokens = [sum(group) if packed else group[0] * len(group) for group in groups]
        return sum(tokens) + BATCH_COST * len(groups) if max(tokens) <= budget else float("inf")

    inner = range(1, len(falling))
    every = [
        [0, *(c for c in inner if chosen >> c & 1), len(falling)]
        for chosen in range(0, 2 ** len(falling), 2)
    ]
    groups = grouped(falling, budget, packed=packed)
    assert sum(groups, ()) == tuple(range(len(falling)))
    found = [0, *itertools.accumulate(map(len, groups))]
    assert cost(found) == min(cost(cuts) for cuts in every)


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE = {**WIDTHS, **HEADS, **SPECIAL, "initializer_range": 0.3}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def gemma_with_a_window() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, sliding_window=16, layer_types=layers))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    shape = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**shape, **no_dropout, bos_token_id=1, eos_token_id=2))


@pytest.fixture
def rows() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((30, 5), (50, 20), (9, 3), (70, 60), (2, 1))
    return [
        Encoded(str(k), None, tuple(torch.randint(256, (n,), generator=generator).tolist()), start)
        for k, (n, start) in enumerate(shapes)
    ]


def losses_and_gradient(
    model: torch.nn.Module, rows: list[Encoded], precision: str, *, packed: bool, budget: int = 1000
) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    sums = torch.zeros(len(rows))
    with arithmetic(model, precision, packed=packed):
        for batch in micro_batches(rows, budget, packed=packed):
            losses = summed_losses(model, batch)
            losses.sum().backward()
            sums[list(batch.members)] = losses.detach()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return sums, torch.cat(grads)


@pytest.mark.parametrize("make", [llama, gemma_with_a_window, gpt2])
@pytest.mark.parametrize("budget", [1000, 90, 8])
def test_packed_instances_have_the_losses_and_the_gradient_of_padded_ones(
    make: type, budget: int, rows: list[Encoded]
) -> None:
    model = make()
    assert packs(model, CPU)
    padded = losses_and_gradient(model, rows, "fp32", packed=False)
    packed = losses_and_gradient(model, rows, "fp32", packed=True, budget=budget)
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-5, atol=1e-4)
    assert torch.linalg.norm(packed[1] - padded[1]) < 1e-5 * torch.linalg.norm(padded[1])


@pytest.mark.parametrize("make", [llama, gemma_with_a_window])
def test_packing_costs_no_more_than_bf16_itself(make: type, rows: list[Encoded]) -> None:
    model = make()
    exact = losses_and_gradient(model, rows, "fp32", packed=False)
    padded = losses_and_gradient(model, rows, "bf16", packed=False)
    packed = losses_and_gradient(model, rows, "bf16", packed=True)
    for truth, ours, theirs in zip(exact, packed, padded, strict=True):
        assert torch.linalg.norm(ours - truth) < 4 * torch.linalg.norm(theirs - truth)
        assert torch.linalg.norm(ours - truth) < 0.1 * torch.linalg.norm(truth)


MAMBA = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "model",
    [Gemma2ForCausalLM(Gemma2Config(**SHAPE)), MambaForCausalLM(MambaConfig(**MAMBA))],
    ids=["capped scores", "a state that runs on"],
)
def test_a_model_that_would_compute_something_else_is_not_packed(model: torch.nn.Module) -> None:
    assert not packs(model, CPU)


def test_the_kernel_of_the_cpu_is_not_for_a_gpu_and_is_taken_back() -> None:
    model = llama()
    with pytest.raises(KeyError), arithmetic(model, "fp32", packed=True):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    assert packs(model, CPU)
    assert not packs(model, torch.device("cuda"))
    model.config._attn_implementation = "flash_attention_2"  # has borders of its own
    assert packs(model, torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("window", "seen"), [(None, [1, 1.5, 2, 4, 4.5]), (2, [1, 1.5, 2.5, 4, 4.5])]
)
def test_equal_scores_average_the_values_that_a_token_sees(
    dtype: torch.dtype, window: int | None, seen: list[float]
) -> None:
    query, key = torch.zeros(1, 2, 5, 4, dtype=dtype), torch.ones(1, 1, 5, 4, dtype=dtype)
    value = torch.tensor([1.0, 2, 3, 4, 5], dtype=dtype).view(1, 1, 5, 1).expand(1, 1, 5, 4)
    given = borders((3, 2), CPU)
    assert given["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    ends = given["cu_seq_lens_q"]
    found, _ = attend(None, query, key, value, None, cu_seq_lens_q=ends, sliding_window=window)
    assert found.shape == (1, 5, 2, 4)
    assert found[0, :, 1, 3].tolist() == seen


def test_what_the_kernel_does_not_do_it_refuses() -> None:
    one = torch.zeros(1, 1, 2, 4)
    ends = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="softcap"):
        attend(None, one, one, one, None, cu_seq_lens_q=ends, softcap=50.0)
    with pytest.raises(NotImplementedError, match="borders"):
        attend(None, one, one, one, None)
