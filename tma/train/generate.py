"""Answers of a model to test prompts: greedy, batched with padding on the left, scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from tma.train.encode import Encoded
from tma.train.evaluate import arithmetic
from tma.train.metrics import exact_match, rouge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    *,
    max_new_tokens: int = 128,
    micro_tokens: int = 4096,
    precision: str = "fp32",
) -> list[str]:
    """Return the model's greedy answer to each instance's prompt, (len(encoded),).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        encoded: instances; the prompt is what stands before the response, in the training format.
        max_new_tokens: tokens of an answer at most.
        micro_tokens: rows × (prompt + answer) tokens of a batch at most; one row is always taken.
        precision: "bf16" or "fp32".
    """
    out = [""] * len(encoded)
    settings = _greedy(tokenizer, max_new_tokens)
    model.train(False)
    # Not in inference_mode: there autocast casts the weights anew for every token.
    with torch.no_grad(), arithmetic(model, precision), _only(model, settings):
        for members in _batches(encoded, micro_tokens, max_new_tokens):
            prompts = [encoded[i].tokens[: encoded[i].response_start] for i in members]
            tokens, mask = _left_padded(prompts, int(settings.pad_token_id))
            generate: Any = model.generate
            made = generate(
                input_ids=tokens.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
            )
            texts = tokenizer.batch_decode(made[:, tokens.shape[1] :], skip_special_tokens=True)
            for member, text in zip(members, texts, strict=True):
                out[member] = text.strip()
    return out


def scored(
    encoded: Sequence[Encoded], made: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Return one entry an answer: id, task, answer, rouge1, rougeL, exact_match."""
    return [
        {"id": row.id, "task": row.task, "answer": answer}
        | rouge(answer, known)
        | {"exact_match": exact_match(answer, known)}
        for row, answer, known in zip(encoded, made, references, strict=True)
    ]


def _greedy(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Any:
    """Return the settings of greedy generation and of nothing else."""
    from transformers import GenerationConfig

    end: Any = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    config: Any = GenerationConfig
    return config(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=pad if pad is not None else 0,
    )


@contextmanager
def _only(model: Any, settings: Any) -> Iterator[None]:
    """Let a model generate by these settings; else its own fill in what they leave open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _batches(encoded: Sequence[Encoded], micro_tokens: int, room: int) -> Iterator[list[int]]:
    """Yield positions in batches of similar prompt length, the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(encoded)), key=lambda i: (-encoded[i].response_start, i)):
        width = encoded[(batch or [i])[0]].response_start + room
        if batch and width * (len(batch) + 1) > micro_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return tokens, mask
