"""Answers of a model to test prompts: greedy, batched with padding on the left, scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch.nn.utils.rnn import pad_sequence

from tma.train.encode import Encoded
from tma.train.evaluate import arithmetic, evened
from tma.train.metrics import exact_match, rouge
from tma.train.packing import BATCH_COST, grouped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    *,
    max_new_tokens: int,
    micro_tokens: int = 4096,
    precision: str = "fp32",
) -> list[str]:
    """Return the model's greedy answer to each instance's prompt, (len(encoded),).

    Each of several processes must call this, with one instance or more.
    """
    out = [""] * len(encoded)
    settings = _greedy(tokenizer, max_new_tokens)
    prompts = [torch.tensor(i.tokens[: i.response_start]) for i in encoded]
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    # Each new token is a forward pass of its own, so a batch costs far more than in training.
    batches = grouped(lengths, micro_tokens, batch_cost=BATCH_COST * max_new_tokens)
    left_padded = partial(pad_sequence, batch_first=True, padding_side="left")
    model.train(False)
    # Not in inference_mode: there autocast casts the weights anew for every token.
    with torch.no_grad(), arithmetic(model, precision), _only(model, settings):
        for members in evened(batches):
            batch = [prompts[i] for i in members]
            tokens = left_padded(batch, padding_value=settings.pad_token_id)
            mask = left_padded([torch.ones_like(prompt) for prompt in batch])
            found = model.generate(
                input_ids=tokens.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                # A process whose answers have ended takes part until those of the others have.
                synced_gpus=PartialState().num_processes > 1,
            )
            texts = tokenizer.batch_decode(found[:, tokens.shape[1] :], skip_special_tokens=True)
            for member, text in zip(members, texts, strict=True):
                out[member] = text.strip()
    return out


def scored(
    encoded: Sequence[Encoded], answered: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Return one entry an answer: id, task, answer, rouge1, rougeL, exact_match."""
    return [
        {"id": instance.id, "task": instance.task, "answer": answer}
        | rouge(answer, known)
        | {"exact_match": exact_match(answer, known)}
        for instance, answer, known in zip(encoded, answered, references, strict=True)
    ]


def _greedy(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Any:
    from transformers import GenerationConfig

    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    pad = next((token for token in (pad, end) if token is not None), 0)
    length = {"max_new_tokens": max_new_tokens, "eos_token_id": end, "pad_token_id": pad}
    config: Any = GenerationConfig
    return config(do_sample=False, num_beams=1, **length)


@contextmanager
def _only(model: Any, settings: Any) -> Iterator[None]:
    """Let a model generate by these settings; its own would fill in what they leave open."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own
