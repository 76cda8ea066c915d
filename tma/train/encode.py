"""Instance → token ids with the response marked, and token ids → micro-batches.

Format: beginning-of-sequence token, `User: ` + prompt, newline, `Assistant: ` + response,
end-of-sequence token; a tokenizer without one of the two leaves it out. The text is tokenised as a
whole, so that the first response token is the one the model would produce; a token that reaches
into the response counts as response.

An over-long instance loses the middle of its prompt, never its response below one token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tma.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BATCH_COST = 128
"""Tokens that take as long as what a micro-batch costs whatever its size: the weights are cast and
the gradients added up once in each."""


@dataclass(frozen=True)
class Encoded:
    """One instance as tokens."""

    id: str
    """Id of the instance."""
    task: str | None
    """Task of the instance."""
    tokens: tuple[int, ...]
    """Token ids, begin and end tokens included."""
    response_start: int
    """Position of the first response token, at least 1."""

    @property
    def response_tokens(self) -> int:
        """Number of tokens with loss, the end-of-sequence token included."""
        return len(self.tokens) - self.response_start


@dataclass(frozen=True)
class MicroBatch:
    """Instances one below the other, padded on the right; or packed into one row, without padding.

    A padded one has a row an instance. A packed one has one row, in which they follow each other.
    """

    members: tuple[int, ...]
    """Positions of the instances in the sequence that was batched."""
    ids: tuple[str, ...]
    """Ids of the instances."""
    lengths: tuple[int, ...]
    """Tokens of the instances."""
    tokens: torch.Tensor
    """(rows, width) int64 token ids."""
    places: tuple[torch.Tensor, torch.Tensor]
    """Row and position, each (k,) int64, of what predicts a response token: the token before it."""
    owners: torch.Tensor
    """(k,) int64: the place in `members` of the instance with that response token."""
    targets: torch.Tensor
    """(k,) int64: the response token predicted there."""
    packed: bool
    """Whether the instances stand in one row."""


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[Encoded]:
    """Return the tokens of all instances.

    Args:
        dataset: instances with `id`, `task`, `prompt`, `response`.
        tokenizer: a fast tokenizer (offsets are needed).
        max_tokens: tokens of an instance at most, at least 8.

    Raises:
        DataError: an instance has no response, or none that the tokenizer keeps; the message names
            it.

    Source: the paper's training format, kept here as one text.
    """
    prefixes = [f"User: {prompt}\nAssistant:" for prompt in dataset["prompt"]]
    whole = [f"{p} {r}" for p, r in zip(prefixes, dataset["response"], strict=True)]
    for name, response in zip(dataset["id"], dataset["response"], strict=True):
        if not response.strip():
            raise DataError(f"instance {name} has no response: nothing to learn or to measure.")
    batch = tokenizer(
        whole,
        add_special_tokens=False,
        split_special_tokens=True,  # "</s>" in a text is these letters, not an end
        return_offsets_mapping=True,
        verbose=False,
    )
    out = []
    for row, (name, task) in enumerate(zip(dataset["id"], dataset["task"], strict=True)):
        ends = [end for _, end in batch["offset_mapping"][row]]
        start = next((k for k, end in enumerate(ends) if end > len(prefixes[row])), None)
        if start is None:
            raise DataError(
                f"instance {name}: the tokenizer drops its whole response "
                f"{dataset['response'][row]!r}; expected at least one token. Leave it out."
            )
        ids = batch["input_ids"][row]
        head, tail = _with_ends(ids[:start], ids[start:], tokenizer)
        out.append(_fitted(name, task, head, tail, max_tokens))
    return out


def _with_ends(
    head: list[int], tail: list[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return ([bos] if bos is not None else []) + head, tail + ([eos] if eos is not None else [])


def _fitted(
    name: str, task: str | None, head: list[int], tail: list[int], max_tokens: int
) -> Encoded:
    # A response may push the prompt back to half the room, then it is cut itself.
    room = max(max_tokens - len(tail), max_tokens // 2)
    if len(head) > room:
        head = head[: (room + 1) // 2] + head[len(head) - room // 2 :]
    return Encoded(name, task, tuple((head + tail)[:max_tokens]), len(head))


def micro_batches(
    encoded: Sequence[Encoded], micro_tokens: int, *, packed: bool = False
) -> list[MicroBatch]:
    """Return the instances as micro-batches of similar length, the longest first.

    Among the groupings of the instances sorted by length, the one that costs least is taken: a
    micro-batch costs its tokens, padding included, and `BATCH_COST` more.

    Args:
        encoded: instances.
        micro_tokens: tokens of a micro-batch at most, padding included; one over-long row still
            gets its own.
        packed: put the instances of a micro-batch into one row, where nothing is padded.
    """
    by_length = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i].tokens), i))
    cuts = _cuts([len(encoded[i].tokens) for i in by_length], micro_tokens, packed)
    groups = [tuple(by_length[start:end]) for start, end in itertools.pairwise(cuts)]
    build = _packed if packed else _padded
    return [build([encoded[i] for i in group], group) for group in groups]


def _cuts(lengths: Sequence[int], micro_tokens: int, packed: bool) -> list[int]:
    """Return where to cut falling lengths into groups, both ends included."""
    cost, start_of = [0], [0]
    for end in range(1, len(lengths) + 1):
        tokens = lengths[end - 1]
        best, start = cost[end - 1] + tokens, end - 1
        for i in range(end - 2, -1, -1):
            tokens = tokens + lengths[i] if packed else lengths[i] * (end - i)
            if tokens > micro_tokens:
                break
            if cost[i] + tokens < best:
                best, start = cost[i] + tokens, i
        cost.append(best + BATCH_COST)
        start_of.append(start)
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(start_of[cuts[-1]])
    return cuts[::-1]


def _padded(rows: Sequence[Encoded], members: tuple[int, ...]) -> MicroBatch:
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for r, row in enumerate(rows):
        tokens[r, : len(row.tokens)] = torch.tensor(row.tokens)
    owners, position = _predicting(rows)
    return _micro_batch(rows, members, tokens, (owners, position), owners, packed=False)


def _packed(rows: Sequence[Encoded], members: tuple[int, ...]) -> MicroBatch:
    tokens = torch.tensor([token for row in rows for token in row.tokens])[None]
    begins = torch.tensor([0, *(len(row.tokens) for row in rows)]).cumsum(0)
    owners, position = _predicting(rows)
    places = (torch.zeros_like(owners), begins[owners] + position)
    return _micro_batch(rows, members, tokens, places, owners, packed=True)


def _predicting(rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row of each response token, and the position before it in its instance."""
    counts = torch.tensor([row.response_tokens for row in rows])
    owners = torch.arange(len(rows)).repeat_interleave(counts)
    spans = [torch.arange(row.response_start, len(row.tokens)) for row in rows]
    # The logits at position p predict the token at p + 1.
    return owners, torch.cat(spans) - 1


def _micro_batch(
    rows: Sequence[Encoded],
    members: tuple[int, ...],
    tokens: torch.Tensor,
    places: tuple[torch.Tensor, torch.Tensor],
    owners: torch.Tensor,
    *,
    packed: bool,
) -> MicroBatch:
    ids, lengths = tuple(row.id for row in rows), tuple(len(row.tokens) for row in rows)
    targets = torch.tensor([token for row in rows for token in row.tokens[row.response_start :]])
    return MicroBatch(members, ids, lengths, tokens, places, owners, targets, packed)
