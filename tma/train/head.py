"""The output head while a model is trained on the CPU: its largest blocks are never whole.

Between a vocabulary and a loss stand blocks of hundreds of megabytes, made anew in every
micro-batch: the weights cast, their gradient as it is computed and again in float32, a gradient of
the lookup that is zero but for a few rows, and logits in float32. Here each is gone through in
parts. The loss is the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

LOGIT_ROWS = 16
"""Rows of logits that are turned into losses at once: in float32 all of them would be the largest
block of memory of a step."""
WEIGHT_ROWS = 16_384
"""Rows of the head's weights that are cast, or get their gradient, at once."""


def tied_on_cpu(model: Any) -> bool:
    """Return whether the head shares all its weights with the lookup, and computes on the CPU."""
    head: Any = model.get_output_embeddings()
    lookup: Any = model.get_input_embeddings()
    tied: bool = (
        type(head) is torch.nn.Linear
        and getattr(head, "bias", None) is None
        and isinstance(lookup, torch.nn.Embedding)
        and head.weight is lookup.weight
        and head.weight.device.type == "cpu"
    )
    return tied


@contextmanager
def in_parts(model: Any) -> Iterator[None]:
    """Let a model whose head is `tied_on_cpu` add up the gradient of the tied weights in place.

    The head adds its share to `.grad` itself, so gradients are to be taken by `backward`. The
    lookup's share has the rows looked up only; autograd adds it to the dense `.grad`.
    """
    head, lookup = model.get_output_embeddings(), model.get_input_embeddings()
    before = lookup.sparse
    # torch declares no types for `apply`; so below.
    head.forward = lambda hidden: _Head.apply(hidden, head.weight)  # type: ignore[no-untyped-call]
    lookup.sparse = True
    try:
        yield
    finally:
        del head.forward  # the one of its class is seen again
        lookup.sparse = before


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each row of logits, (k,) float32, in nats."""
    losses: torch.Tensor = _Losses.apply(logits, targets)  # type: ignore[no-untyped-call]
    return losses


class _Losses(torch.autograd.Function):
    """Cross-entropy that keeps the logits as they are, and no probabilities in float32."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts = zip(torch.split(logits, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True)
        losses = torch.cat([cross_entropy(z.float(), to, reduction="none") for z, to in parts])
        ctx.save_for_backward(logits, targets, losses)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, losses = ctx.saved_tensors
        out = torch.empty_like(logits)
        columns = (targets[:, None], losses[:, None], grads[0][:, None])
        parts = (torch.split(whole, LOGIT_ROWS) for whole in (out, logits, *columns))
        for to, z, target, loss, grad in zip(*parts, strict=True):
            # Softmax, from the loss: the logit of the target less the logarithm of the sum.
            share = z.float() - (z.gather(1, target).float() + loss)
            share.exp_().scatter_add_(1, target, -torch.ones_like(loss))
            to.copy_(share.mul_(grad))
        return out, None


class _Head(torch.autograd.Function):
    """Hidden states times weights, in the precision of autocast where that is on."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
        ctx.save_for_backward(hidden)
        ctx.weight = weight
        out = hidden.new_empty(len(hidden), len(weight))
        for part, rows in zip(
            torch.split(out, WEIGHT_ROWS, dim=1), torch.split(weight, WEIGHT_ROWS), strict=True
        ):
            part.copy_(hidden @ rows.to(hidden.dtype).T)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (hidden,), weight = ctx.saved_tensors, ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        back = torch.zeros(hidden.shape, device=hidden.device)
        places = (torch.split(weight, WEIGHT_ROWS), torch.split(weight.grad, WEIGHT_ROWS))
        for part, rows, total in zip(
            torch.split(grads[0], WEIGHT_ROWS, dim=1), *places, strict=True
        ):
            back.add_(part @ rows.to(hidden.dtype))
            total.add_(part.T @ hidden)
        return back.to(hidden.dtype), None
