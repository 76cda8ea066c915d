"""`export`: an order as the files of another trainer, and which rows it would not train on whole.

Lengths are those of the given tokenizer, for chats with its chat template; a trainer with a
template of its own may count a few tokens more or less.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.arrange.receipt import Arranged, Receipt, receipt_of
from tma.errors import check_count, wrong
from tma.export.consumed import ID
from tma.export.rows import Placed, Rows, are_chats, as_messages, in_order, llama_factory
from tma.export.trainers import TRAINERS, UNSAFE, Rest, check_trainer, dataset_info
from tma.store import new_file, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

UPDATE = 100
"""Steps for which DataFlex hands rows out at once."""


@dataclass(frozen=True)
class Change:
    """A row that a trainer would not train on whole, or once."""

    id: str
    place: str
    what: str
    """dropped, truncated, repeated, or altered."""
    why: str


@dataclass(frozen=True)
class Export:
    """What `export` wrote."""

    folder: Path
    files: tuple[str, ...]
    changed: tuple[Change, ...]
    """Also in `changed.jsonl`."""


def export(
    receipt: Receipt | Arranged | Path | str,
    rows: Rows,
    trainer: str,
    folder: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 2048,
    batch_size: int = 8,
    processes: int = 1,
) -> Export:
    """Write an order for another trainer: rows, settings that keep the order, and the receipt.

    Args:
        receipt: the order, its receipt, or the file of that.
        rows: the training set as `tma.load` gives it, or rows as `tma.save` writes them.
        trainer: a name in `tma.export.trainers.TRAINERS`, such as trl or llama-factory.
        folder: where to write `train.jsonl`, the configuration, `receipt.json`, `changed.jsonl`.
        tokenizer: the model's; None: rows that are too long are not found.
        max_length: tokens of a row that are trained on.
        batch_size: rows that a process takes at a time.
        processes: GPUs, as a rule.

    Raises:
        ParameterError: the trainer is unknown, or cannot keep an order (`export.UNSAFE`).
        OrderError: the rows are not in the order of the receipt.
        DataError: a row is missing, or is neither a chat nor a prompt with its response.
    """
    check_trainer(trainer)
    counts = {"max_length": max_length, "batch_size": batch_size, "processes": processes}
    for name, value in counts.items():
        check_count(name, value, 1)
    receipt = receipt_of(receipt)
    if tokenizer is None:
        log.warning(
            "rows of more than %d tokens are not looked for: that takes a tokenizer", max_length
        )
    placed = in_order(receipt, rows)
    if not placed:
        raise wrong("receipt", "an order without rows", "at least one")
    chats, spec, target = are_chats(placed), TRAINERS[trainer], Path(folder)
    written = [{ID: one.id} | spec.row(one, chats=chats) for one in placed]
    changed = [
        *_lost(placed, written, tokenizer, max_length),
        *_uneven(placed, spec.rest, batch_size, processes),
    ]
    if trainer == "dataflex":
        written = [{**row, "score": place} for place, row in enumerate(written)]
    once = len(placed) // (batch_size * processes)
    texts = {
        "train.jsonl": _json_lines(written),
        "changed.jsonl": _json_lines(asdict(one) for one in changed),
        **spec.settings(
            count=len(placed),
            digest=receipt.sha256[:12],
            update=min(UPDATE, max(1, once)),
            **counts,
        ),
    }
    for name, text in texts.items():
        with new_file(target / name) as draft:
            draft.write_text(text, "utf-8")
    receipt.save(target / "receipt.json")
    files = [*texts, "receipt.json"]
    if spec.row is llama_factory:
        write_json(target / "dataset_info.json", dataset_info(written))
        files.append("dataset_info.json")
    for what, count in Counter(one.what for one in changed).items():
        first = next(one for one in changed if one.what == what)
        log.warning(
            "%d of %d rows would be %s by %s, the first %s (%s): %s. All are in changed.jsonl.",
            *(count, len(placed), what, trainer, first.id, first.place, first.why),
        )
    return Export(target, tuple(files), tuple(changed))


export.UNSAFE = UNSAFE  # type: ignore[attr-defined]


def _json_lines(values: Any) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _lost(
    placed: Sequence[Placed],
    written: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
) -> Iterator[Change]:
    """Yield the rows of which the trainer does not read every token."""
    for one, row in zip(placed, written, strict=True):
        if (why := _refused(row)) is not None:
            yield Change(one.id, one.place, "dropped", why)
        elif tokenizer is not None:
            asked, length = _lengths(one, row, tokenizer)
            # TRL cuts a row that is too long, and drops it if no answer is left.
            if "completion" in row and asked is not None and asked >= min(max_length, length):
                why = f"its prompt has {asked} tokens, and max_length is {max_length}"
                yield Change(one.id, one.place, "dropped", why)
            elif length > max_length:
                why = f"it has {length} tokens; max_length is {max_length}"
                yield Change(one.id, one.place, "truncated", why)
        if "conversations" in row and _beside_calls(one):
            yield Change(one.id, one.place, "altered", "text beside a tool call is left out")


def _refused(row: dict[str, Any]) -> str | None:
    """Return why LLaMA-Factory drops a row: its turns do not alternate, or it does not answer."""
    if "conversations" not in row:
        return None
    roles = [turn["role"] for turn in row["conversations"]]
    accepted = ("user", "observation"), ("assistant", "function_call")
    for number, role in enumerate(roles, start=1):
        if role not in accepted[(number - 1) % 2]:
            return f"turn {number} is by {role}; expected {' or '.join(accepted[(number - 1) % 2])}"
    return "it does not end with an answer" if len(roles) % 2 or not roles else None


def _beside_calls(one: Placed) -> bool:
    turns = one.row.get("messages") or []
    return any(turn.get("tool_calls") and turn.get("content") for turn in turns)


def _lengths(
    one: Placed, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[int | None, int]:
    """Return the tokens of a row's prompt, None for a chat, and of all of it."""
    if "messages" in row or "conversations" in row:
        tools = row.get("tools") or None
        tools = json.loads(tools) if isinstance(tools, str) else tools
        made: Any = tokenizer.apply_chat_template(as_messages(one), tools=tools, return_dict=True)
        return None, len(made["input_ids"])
    prompt = row.get("prompt") or "\n".join(filter(None, (row["instruction"], row["input"])))
    whole = prompt + row.get("completion", row.get("output", ""))
    eos = str(tokenizer.eos_token or "")
    whole = whole if whole.endswith(eos) else whole + eos
    first, both = (tokenizer(text)["input_ids"] for text in (prompt, whole))
    pairs = enumerate(zip(first, both, strict=False))
    common = next((k for k, (a, b) in pairs if a != b), min(len(first), len(both)))
    return common, len(both)


def _uneven(
    placed: Sequence[Placed], rest: Rest, batch_size: int, processes: int
) -> Iterator[Change]:
    """Yield the rows that come twice or not at all because batches leave a rest."""
    if rest == "dropped":
        for one in placed[len(placed) - len(placed) % processes :]:
            why = f"it is left over when {processes} processes share the rows evenly"
            yield Change(one.id, one.place, "dropped", why)
    elif processes > 1 or rest == "always filled":
        short = -len(placed) % (batch_size * processes)
        for number in range(short):
            one = placed[number % len(placed)]
            why = f"the last batch of {batch_size * processes} is filled up with the first rows"
            yield Change(one.id, one.place, "repeated", why)
