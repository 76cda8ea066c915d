"""Padding-free attention: the instances of a micro-batch stand one after another in one row.

Everything but attention treats each token by itself, so that a row of instances needs no padding;
attention alone must not see across their borders. On the CPU, where no such kernel exists, the one
below takes the instances one by one; a flash-attention kernel does it by itself. Which of the two
a model's code goes through is found out by trying (`packs`), not from a list of architectures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

KERNEL = "tma_packed"
"""Name under which transformers finds the kernel."""
MATMUL_LENGTH = 1024
"""Tokens of an instance up to which its bfloat16 scores are kept as one matrix: that is faster than
the fused kernel of the CPU, and takes 2 bytes a score and head. Float32 always takes the fused
kernel, whose sums are those of the padded model."""

CHANGES = ("softcap", "s_aux", "position_bias")
"""Arguments by which a layer asks for more than scaled and masked scores."""


def borders(lengths: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """Return what a model is given beside the tokens of one packed row.

    Args:
        lengths: tokens of each instance, in their sequence.
        device: where the model computes.

    Returns:
        Positions that begin anew with each instance, and the names under which the kernels of
        transformers take the borders.
    """
    ends = torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    longest = max(lengths)
    return {
        "position_ids": positions.to(device),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def packs(model: Any, device: torch.device | None = None) -> bool:
    """Return whether a model computes packed instances as it computes each alone.

    It is tried on two short instances in float32: architectures whose attention keeps a state, or
    does more to its scores than scaling and masking them, give other numbers or refuse.

    Args:
        model: a causal language model.
        device: where it will compute; None: where it is. The kernel below is for the CPU.
    """
    if _own_kernel(model):
        return True
    here = next(model.parameters()).device
    device = device or here
    if {here.type, device.type} != {"cpu"} or not model._can_set_attn_implementation():
        return False
    training, vocabulary = model.training, model.get_input_embeddings().num_embeddings
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
    finally:
        model.train(training)


def _own_kernel(model: Any) -> bool:
    return str(model.config._attn_implementation).startswith("flash_attention")


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let a model on the CPU compute attention within each instance of a packed row."""
    if _own_kernel(model):
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
    module: Any,
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
    """Return causal attention within each instance of one packed row.

    Args:
        module: the layer; not used, part of the interface of transformers.
        query: (1, heads, tokens, width).
        key: (1, key heads, tokens, width); a key head serves heads / key heads queries.
        value: as `key`.
        attention_mask: must be None.
        cu_seq_lens_q: (instances + 1,) places where instances begin and the last ends.
        scaling: factor of the scores; None: 1 / √width.
        sliding_window: tokens that a token sees, itself included; None: all before it.
        dropout: share of the weights set to zero in training.
        others: what else the layer hands to kernels; nothing that changes the scores.

    Returns:
        (1, tokens, heads, width), and None for the weights.

    Raises:
        NotImplementedError: the layer asks for more than this kernel does.
    """
    asked = [name for name in CHANGES if others.get(name) is not None]
    if cu_seq_lens_q is None or attention_mask is not None or asked:
        raise NotImplementedError(f"packed attention needs borders, and does not do {asked}")
    # Turning positions into angles leaves queries and keys in float32 where values are bfloat16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    lengths = cu_seq_lens_q.diff().tolist()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = _hidden(min(max(lengths), MATMUL_LENGTH), sliding_window, query)
    parts = []
    for q, k, v in zip(*(torch.split(x, lengths, 2) for x in (query, key, value)), strict=True):
        tokens = q.shape[2]
        if q.dtype == torch.bfloat16 and tokens <= MATMUL_LENGTH and not dropout:
            own = causal[:tokens, :tokens]
            parts.append(_by_matmul(q.squeeze(0), k.squeeze(0), v.squeeze(0), own, scale)[None])
        else:
            parts.append(_fused(q, k, v, window=sliding_window, dropout=dropout, scale=scale))
    return torch.cat(parts, 2).transpose(1, 2), None


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Return (1, heads, tokens, width) of one instance by the fused kernel of torch."""
    tokens = query.shape[2]
    windowed = window is not None and window < tokens
    mask = _hidden(tokens, window, query) if windowed else None
    shared = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=not windowed, scale=scale, enable_gqa=shared
    )


def _hidden(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return (length, length): 0 where row i may see column j, minus infinity elsewhere."""
    mask = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    later = mask.triu(1)
    return later if window is None or window >= length else later + mask.tril(-window)


def _by_matmul(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Return (heads, tokens, width) of one instance by two products of matrices."""
    heads, tokens, width = query.shape
    shared = heads // len(key)
    mask = causal.repeat(shared, 1)
    rows = query.reshape(len(key), shared * tokens, width)
    scores = torch.baddbmm(mask, rows, key.transpose(1, 2), alpha=scale)
    return (scores.softmax(-1) @ value).view(heads, tokens, -1)
