"""Response losses: only the logits that predict response tokens are computed.

Instances are packed where the attention kernel can (`packing`). Else they are padded on the right,
so under causal attention no real token ever sees a pad token and no attention mask is needed; that
leaves the attention kernel its fastest path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tma.train.encode import Encoded, MicroBatch, micro_batches
from tma.train.head import token_losses
from tma.train.packing import borders, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "bf16" or "fp32"; "auto" is bf16 where the machine computes in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    backend: Any = torch.backends.mkldnn
    onednn = device.type == "cpu" and backend.is_available()
    fast = onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


@contextmanager
def arithmetic(model: Any, precision: str, *, packed: bool = False) -> Iterator[None]:
    """Let a model compute in "bf16" (autocast) or "fp32", and take packed rows if wanted.

    It goes around all micro-batches of a step, not around each: the weights are cast once inside.
    """
    device = next(model.parameters()).device
    attention = packed_attention(_bare(model)) if packed else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), attention:
        yield


def summed_losses(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """Return each instance's summed response loss, (instances,) float32, in nats.

    Args:
        model: a causal language model, on the device where it computes.
        batch: a micro-batch; if it is packed, `arithmetic` must have been told.
    """
    device = next(model.parameters()).device
    row, position = (places.to(device) for places in batch.places)
    given = borders(batch.lengths, device) if batch.packed else {}
    with _head_only_at(model, row, position):
        logits = model(input_ids=batch.tokens.to(device), use_cache=False, **given).logits
    losses = token_losses(logits, batch.targets.to(device))
    sums = torch.zeros(len(batch.ids), device=device)
    return sums.index_add(0, batch.owners.to(device), losses)


def _bare(model: Any) -> Any:
    return getattr(model, "module", model)  # several processes wrap it


@contextmanager
def _head_only_at(
    model: PreTrainedModel, row: torch.Tensor, position: torch.Tensor
) -> Iterator[None]:
    """Let the output head see only these hidden states; the logits are then (k, vocabulary).

    Whatever a model does to its logits afterwards (scaling, soft caps) it still does, which
    calling the head ourselves would leave out.
    """
    head: torch.nn.Module = _bare(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _head, args: (args[0][row, position],))
    try:
        yield
    finally:
        handle.remove()


def response_losses(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    micro_tokens: int,
    precision: str,
    *,
    packed: bool = False,
) -> NDArray[np.float64]:
    """Return the summed response loss of every instance, (len(encoded),), in nats.

    Args:
        model: a causal language model.
        encoded: test instances.
        micro_tokens: tokens of a micro-batch at most, padding included.
        precision: "bf16" or "fp32".
        packed: compute instances side by side in one row; the model must (`packing.packs`).

    Returns:
        The losses; NaN or infinite where the model gives that.
    """
    out = np.full(len(encoded), np.nan)
    model.train(False)
    # Not in inference_mode: there autocast casts the weights anew in every micro-batch.
    with torch.no_grad(), arithmetic(model, precision, packed=packed):
        for batch in micro_batches(encoded, micro_tokens, packed=packed):
            out[list(batch.members)] = summed_losses(model, batch).cpu().numpy()
    return out
