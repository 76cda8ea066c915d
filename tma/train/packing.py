"""Token ids → micro-batches, without padding where the attention kernel allows it.

Only attention looks beyond a single token, so the instances of a micro-batch can share one row if
attention stops at their borders. A flash-attention kernel does so by itself; on the CPU the kernel
below takes the instances one by one, for models that turn out to work with it (`packs`). Elsewhere
rows are padded on the right: under causal attention no real token sees a pad token, so no mask is
needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from tma.train.encode import Encoded

BATCH_COST = 128
"""Fixed cost of a micro-batch, in tokens: casting the weights and adding up the gradients."""
KERNEL = "tma_packed"
"""Name under which transformers finds the kernel."""
MATMUL_LENGTH = 1024
"""Longest instance, in tokens, whose bfloat16 scores are kept as one matrix, which is faster on the
CPU. Float32 always takes the fused kernel, whose sums are those of the padded model."""
UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments by which a layer asks for more than scaled and masked scores."""


@dataclass(frozen=True)
class MicroBatch:
    """Instances that go through the model together: padded, a row each, or packed into one row.

    `members` are their positions in the sequence that was batched, `tokens` (rows, width) int64. Of
    each of the k response tokens `targets` (k,) is the token itself, `owners` (k,) the place of its
    instance in `members`, and `places` row and position, each (k,), of the token before it.
    """

    members: tuple[int, ...]
    instances: tuple[Encoded, ...]
    tokens: torch.Tensor
    places: tuple[torch.Tensor, torch.Tensor]
    owners: torch.Tensor
    targets: torch.Tensor
    packed: bool


def micro_batches(
    encoded: Sequence[Encoded], micro_tokens: int, *, packed: bool = False
) -> list[MicroBatch]:
    """Return the instances as micro-batches of similar length, the longest first."""
    groups = grouped([len(instance.tokens) for instance in encoded], micro_tokens, packed=packed)
    return [_micro_batch(encoded, group, packed) for group in groups]


def grouped(
    lengths: Sequence[int], micro_tokens: int, *, packed: bool = False, batch_cost: int = BATCH_COST
) -> list[tuple[int, ...]]:
    """Return the positions of some lengths in groups of similar length, the longest first.

    Of all groupings of the sorted lengths, this is the cheapest: a group costs its tokens, padding
    included unless packed, and `batch_cost` more. Only a single length may exceed `micro_tokens`.
    """
    by_length = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    falling = [lengths[i] for i in by_length]
    cost, start_of = [0], [0]
    for end in range(1, len(falling) + 1):
        tokens = falling[end - 1]
        best, start = cost[end - 1] + tokens, end - 1
        for i in range(end - 2, -1, -1):
            tokens = tokens + falling[i] if packed else falling[i] * (end - i)
            if tokens > micro_tokens:
                break
            if cost[i] + tokens < best:
                best, start = cost[i] + tokens, i
        cost.append(best + batch_cost)
        start_of.append(start)
    cuts = [len(falling)]
    while cuts[-1]:
        cuts.append(start_of[cuts[-1]])
    return [tuple(by_length[start:end]) for start, end in itertools.pairwise(cuts[::-1])]


def _micro_batch(encoded: Sequence[Encoded], members: tuple[int, ...], packed: bool) -> MicroBatch:
    instances = tuple(encoded[i] for i in members)
    tokens = [torch.tensor(i.tokens) for i in instances]
    counts = torch.tensor([i.response_tokens for i in instances])
    owners = torch.arange(len(instances)).repeat_interleave(counts)
    responses = [torch.arange(i.response_start, len(i.tokens)) for i in instances]
    position = torch.cat(responses) - 1  # the logits at p predict the token at p + 1
    targets = torch.cat([t[at] for t, at in zip(tokens, responses, strict=True)])
    if packed:
        position += torch.tensor([0, *map(len, tokens)]).cumsum(0)[owners]
        given, row = torch.cat(tokens)[None], torch.zeros_like(owners)
    else:
        given, row = pad_sequence(tokens, batch_first=True), owners
    return MicroBatch(members, instances, given, (row, position), owners, targets, packed)


def borders(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Return positions and borders of instances in one row, as the kernels of transformers ask."""
    ends = torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    longest = {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return {"position_ids": positions, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, **longest}


def packs(model: Any, device: torch.device) -> bool:
    """Return whether a model, on a device, computes packed instances as it computes each alone.

    Two short instances in float32 show it: architectures whose attention keeps a state, or does
    more to its scores than scaling and masking them, give other numbers or refuse.
    """
    if _flash(model):
        return True
    devices = {next(model.parameters()).device.type, device.type}
    if devices != {"cpu"} or not model._can_set_attn_implementation():
        return False
    vocabulary = model.get_input_embeddings().num_embeddings
    first, second = (torch.arange(k, k + 5)[None] % vocabulary for k in (1, 3))
    model.train(False)
    try:
        with torch.inference_mode():
            alone = [model(input_ids=row, use_cache=False).logits for row in (first, second)]
            with packed_attention(model):
                row = torch.cat([first, second], 1)
                together = model(input_ids=row, use_cache=False, **borders((5, 5), device)).logits
        return torch.allclose(together, torch.cat(alone, 1), rtol=1e-3, atol=1e-4)
    except (NotImplementedError, TypeError, ValueError):
        return False


def _flash(model: Any) -> bool:
    return str(model.config._attn_implementation).startswith("flash_attention")


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let a model on the CPU compute attention within each instance of a packed row."""
    if _flash(model):
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(KERNEL, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(KERNEL)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    _layer: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each instance of one packed row, (1, tokens, heads, width).

    The arguments are those of transformers: query (1, heads, tokens, width), key and value (1, key
    heads, tokens, width), and `cu_seq_lens_q` of `borders`.
    """
    asked = [name for name in UNSUPPORTED if others.get(name) is not None]
    if cu_seq_lens_q is None or attention_mask is not None or asked:
        raise NotImplementedError(f"packed attention needs borders, and does not do {asked}")
    # Rotary position embeddings leave queries and keys in float32 where values are bfloat16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    lengths, window = cu_seq_lens_q.diff().tolist(), sliding_window
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = _mask(min(max(lengths), MATMUL_LENGTH), window, query)
    parts = []
    for q, k, v in zip(*(torch.split(x, lengths, 2) for x in (query, key, value)), strict=True):
        tokens = q.shape[2]
        if q.dtype == torch.bfloat16 and tokens <= MATMUL_LENGTH and not dropout:
            parts.append(_by_matmul(q, k, v, causal[:tokens, :tokens], scale))
        else:
            mask = None if window is None or window >= tokens else _mask(tokens, window, q)
            how = {"is_causal": mask is None, "enable_gqa": q.shape[1] != k.shape[1]}
            parts.append(scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, **how))
    return torch.cat(parts, 2).transpose(1, 2), None


def _mask(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return (length, length): 0 where row i may see column j, minus infinity elsewhere."""
    mask = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    later = mask.triu(1)
    return later if window is None or window >= length else later + mask.tril(-window)


def _by_matmul(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return (1, heads, tokens, width) of one instance by two products of matrices."""
    _, heads, tokens, width = query.shape
    shared = heads // key.shape[1]
    rows = query.reshape(-1, shared * tokens, width)
    scores = torch.baddbmm(mask.repeat(shared, 1), rows, key[0].transpose(1, 2), alpha=scale)
    return (scores.softmax(-1) @ value[0]).view(1, heads, tokens, -1)
