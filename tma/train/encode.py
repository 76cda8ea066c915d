"""Instance → token ids with the response marked.

The text of an instance is `User: ` + prompt, newline, `Assistant: ` + response, between the
tokenizer's beginning- and end-of-sequence tokens where it has them. It is tokenised in one go, so
that the first response token is the one the model would produce; a token that spans the end of the
prompt and the start of the response counts as response.

An instance that is too long loses the middle of its prompt. The prompt keeps at least half of
`max_tokens`; what the response still exceeds is cut off its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tma.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PROMPT = "User: {}\nAssistant:"
"""The text before a response; a space follows."""


@dataclass(frozen=True)
class Encoded:
    """One instance as tokens, begin and end tokens included."""

    id: str
    task: str | None
    tokens: tuple[int, ...]
    response_start: int
    """Position of the first response token, at least 1."""

    @property
    def response_tokens(self) -> int:
        """Number of tokens with loss, the end-of-sequence token included."""
        return len(self.tokens) - self.response_start


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[Encoded]:
    """Return the tokens of all instances, at most `max_tokens` each, by a fast tokenizer."""
    ids, responses = list(dataset["id"]), list(dataset["response"])
    prompts = [PROMPT.format(prompt) for prompt in dataset["prompt"]]
    batch = tokenizer(
        [f"{prompt} {response}" for prompt, response in zip(prompts, responses, strict=True)],
        add_special_tokens=False,
        split_special_tokens=True,  # "</s>" in a text is these letters, not an end
        return_offsets_mapping=True,
        verbose=False,
    )
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin, end = ([] if token is None else [token] for token in ends)
    out = []
    for place, (name, task) in enumerate(zip(ids, dataset["task"], strict=True)):
        stops = (stop for _, stop in batch["offset_mapping"][place])
        start = next((k for k, stop in enumerate(stops) if stop > len(prompts[place])), None)
        if start is None:
            raise DataError(
                f"instance {name}: the tokenizer drops its whole response {responses[place]!r}; "
                "expected at least one token. Leave it out."
            )
        tokens = batch["input_ids"][place]
        prompt, response = begin + tokens[:start], tokens[start:] + end
        room = max(max_tokens - len(response), max_tokens // 2)
        if len(prompt) > room:
            prompt = prompt[: (room + 1) // 2] + prompt[len(prompt) - room // 2 :]
        out.append(Encoded(name, task, tuple((prompt + response)[:max_tokens]), len(prompt)))
    return out
