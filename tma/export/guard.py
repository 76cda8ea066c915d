"""`OrderGuard`: watches a transformers or TRL trainer, and stops it where it leaves the order.

Ids do not reach the batches: trainers remove all columns but tokens. So the guard goes by content.
Before a batch is trained on, its rows, without padding, are compared with what the trainer's own
collator makes of the rows that are next; rows of equal tokens count as one another. Recording
where rows are read would not do: workers read ahead, and a resumed trainer reads what it skips.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tma.arrange.receipt import Arranged, Departure, Receipt, receipt_of
from tma.errors import OrderError, ParameterError, wrong
from tma.export.consumed import ID, read_lines
from tma.store import new_file

log = logging.getLogger(__name__)

TOLD = 60
"""Characters of a text that `consumed.jsonl` and messages quote."""


class OrderGuard(TrainerCallback):
    """Records what a trainer consumes, and raises an `OrderError` where it leaves the order.

    As in::

        trainer = SFTTrainer(model, args, train_dataset=rows)  # with the column tma_id
        tma.OrderGuard("receipt.json").watch(trainer)
        trainer.train()

    Before the first step it refuses, with a `ParameterError` that names the setting, what would
    move, drop or repeat rows. Then `consumed` grows by a line a row: step, epoch, id, and the
    beginning of the text. Resumed, training goes on in the same file.

    Args:
        receipt: the receipt, its file, or the order with it.
        consumed: file to write.
    """

    def __init__(
        self, receipt: Receipt | Arranged | Path | str, consumed: Path | str = "consumed.jsonl"
    ) -> None:
        self.receipt = receipt_of(receipt)
        self.consumed = Path(consumed)
        self._place, self._epoch, self._entered = 0, 1, True

    def watch(self, trainer: Trainer) -> None:
        """Follow a trainer that is ready to train; its `train_dataset` has the column `tma_id`."""
        step = trainer.training_step

        def watched(model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            self._record(inputs)
            return step(model, inputs, *given, **named)

        trainer.training_step = watched  # type: ignore[method-assign]
        trainer.add_callback(self)
        self._trainer = trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Refuse settings and rows that cannot keep the order; find where a resumed run stood."""
        resumed = state.global_step > 0
        _refuse_settings(args, self._trainer, train_dataloader, resumed=resumed)
        self._check_rows(args)
        _refuse_batches(args, train_dataloader, len(self.receipt.ids))
        rows, collate = train_dataloader.dataset, train_dataloader.collate_fn
        self._row = cache(lambda row: self._told(_tokens(collate([rows[row]]))[0]))
        done = _from_main(lambda: self._begin(state))
        self._epoch, self._place = divmod(done, len(self.receipt.ids) or 1)
        self._epoch, self._entered = self._epoch + 1, not self._place

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Go back to the first row, if the epoch before went to the last."""
        if not self._entered:  # resumed within an epoch
            self._entered = True
        elif self._place == len(self.receipt.ids):
            self._epoch, self._place = self._epoch + 1, 0
        elif self._place:
            self._depart(None)

    def on_train_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Say how much was consumed, all of it in order."""
        done, once = (self._epoch - 1) * len(self.receipt.ids) + self._place, len(self.receipt.ids)
        early = "" if self._place == once else f", which ends within epoch {self._epoch}"
        log.info("%d rows were consumed in the order of %d%s", done, once, early)

    def _check_rows(self, args: TrainingArguments) -> None:
        """Raise unless the trainer holds the rows of the receipt, in their sequence."""
        rows: Any = self._trainer.train_dataset
        names = getattr(rows, "column_names", None)
        if names is not None:
            ids = list(rows[ID]) if ID in names else []
        else:
            ids = [row[ID] for row in rows if isinstance(row, Mapping) and ID in row]
        if not ids and len(rows):
            raise wrong("train_dataset", names, f"rows with the column {ID}, as tma.save writes it")
        held = {*ids}
        missing = [name for name in self.receipt.ids if name not in held]
        if missing and len(ids) < len(self.receipt.ids):
            limit = getattr(args, "max_length", None)
            first = self.receipt.ids.index(missing[0]) + 1
            raise OrderError(
                f"the trainer dropped {len(missing)} of {len(self.receipt.ids)} rows, which moves "
                f"later ones: {', '.join(missing[:5])}{', …' if missing[5:] else ''} (the first at "
                f"position {first}). Rows without a token to train on are dropped: raise "
                f"max_length={limit}, or leave these rows out of the order."
            )
        self.receipt.check(ids)

    def _begin(self, state: TrainerState) -> int:
        """Make the file, or cut it to the steps of a resumed state; return the rows it holds."""
        kept = list[dict[str, Any]]()
        if state.global_step:
            lines = read_lines(self.consumed, torn=True)
            kept = [line for line in lines if line.get("step", 0) <= state.global_step]
            last = kept[-1].get("step") if kept else 0
            if last != state.global_step:
                raise OrderError(
                    f"training goes on after step {state.global_step}, but {self.consumed} ends "
                    f"with step {last}; expected the file of the training that is resumed."
                )
            self.receipt.check([line["id"] for line in kept], epochs=len(kept), prefix=True)
        elif self.consumed.is_file():
            log.warning("%s is replaced: training begins anew", self.consumed)
        with new_file(self.consumed) as draft:
            draft.write_text("".join(_line(line) for line in kept), "utf-8")
        return len(kept)

    def _record(self, inputs: Mapping[str, Any]) -> None:
        """Write down the rows of a batch, of all processes; raise where they are not the next."""
        ids, departs = self.receipt.ids, False
        lines = list[dict[str, Any]]()
        for seen in _gathered([self._told(tokens) for tokens in _tokens(inputs)]):
            departs = self._place >= len(ids) or seen[0] != self._row(self._place)[0]
            named = self._named(seen[0]) if departs else ids[self._place]
            lines.append({"id": named, "text": seen[1]})
            if departs:
                break
            self._place += 1
        state = self._trainer.state
        if state.is_world_process_zero:
            own = {"step": state.global_step + 1, "epoch": self._epoch}
            with self.consumed.open("a", encoding="utf-8") as stream:
                stream.writelines(_line(own | line) for line in lines)
        if departs:
            self._depart(lines[-1])

    def _depart(self, seen: Mapping[str, str] | None) -> None:
        """Raise for a row that is not the next; None: for an epoch that ended."""
        ids, texts = self.receipt.ids, {} if seen is None else {seen["id"]: seen["text"]}
        expected = ids[self._place] if self._place < len(ids) else None
        if expected is not None:
            texts[expected] = self._row(self._place)[1]
        actual = None if seen is None else seen["id"]
        raise OrderError(Departure(self._place + 1, self._epoch, expected, actual).told(texts))

    def _named(self, key: bytes) -> str:
        """Return the id of the first row with these tokens."""
        for row, name in enumerate(self.receipt.ids):
            if self._row(row)[0] == key:
                return name
        return "a row that is not in the order"

    def _told(self, tokens: Sequence[int]) -> tuple[bytes, str]:
        """Return the digest of a row's tokens, and the beginning of its text."""
        raw = np.asarray(tokens, np.int64).tobytes()
        decode = getattr(self._trainer.processing_class, "decode", None)
        text = "" if decode is None else str(decode(list(tokens[:TOLD])))[:TOLD]
        return hashlib.blake2b(raw, digest_size=16).digest(), text


def _refuse_settings(
    args: TrainingArguments, trainer: Trainer, loader: Any, *, resumed: bool
) -> None:
    """Refuse settings that move rows, whatever their number."""
    from torch.utils.data import SequentialSampler

    def refuse(name: str, value: object, expected: str) -> None:
        raise wrong(name, value, expected)

    rows, sampling = trainer.train_dataset, getattr(args, "train_sampling_strategy", "random")
    if not hasattr(rows, "__len__"):
        refuse("train_dataset", type(rows).__name__, "a dataset with a length, read by row number")
    if getattr(args, "packing", False):
        refuse("packing", True, "False: packed rows change places or cannot be told apart")
    if getattr(args, "shuffle_dataset", False):
        refuse("shuffle_dataset", True, "False: it shuffles before training")
    if not isinstance(_sampler(loader), SequentialSampler):
        refuse("train_sampling_strategy", sampling, "'sequential': the sampler shuffles")
    if getattr(args, "parallelism_config", None) is not None:
        refuse("parallelism_config", "set", "None: processes that share a batch are not told apart")
    if resumed and args.ignore_data_skip:
        refuse("ignore_data_skip", True, "False: a resumed epoch begins again at its first row")


def _refuse_batches(args: TrainingArguments, loader: Any, rows: int) -> None:
    """Refuse batches that leave a rest which is dropped or filled up."""
    accelerated: Any = args.accelerator_config
    total = int(loader.total_batch_size)
    rest = rows % total
    if not rest:
        return
    if args.dataloader_drop_last:
        raise wrong("dataloader_drop_last", True, f"False: {rest} of {rows} rows would be dropped")
    if args.world_size > 1 and accelerated.even_batches:
        raise ParameterError(
            f"per_device_train_batch_size={args.per_device_train_batch_size} on {args.world_size} "
            f"processes takes {total} rows at a time, and {rows} rows leave a rest of {rest}: "
            f"even_batches would fill it with the {total - rest} first rows, which then come "
            f"twice. Expected a divisor; cut the order with limit={rows - rest}, or choose another "
            "batch size."
        )


def _sampler(loader: Any) -> Any:
    """Return the sampler below accelerate's batch samplers; None: there is none."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return getattr(batches, "sampler", None)


def _tokens(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Return the tokens of each row of a batch, without padding."""
    ids, mask = inputs["input_ids"].cpu(), inputs.get("attention_mask")
    if mask is not None:
        return [row[kept].tolist() for row, kept in zip(ids, mask.cpu().bool(), strict=True)]
    if "cu_seq_lens_q" in inputs:  # rows one behind the other, without padding
        ends = inputs["cu_seq_lens_q"].tolist()
        return [ids[0, a:b].tolist() for a, b in pairwise(ends)]
    found: list[list[int]] = ids.tolist()
    return found


def _gathered(own: list[Any]) -> list[Any]:
    """Return what all processes have, in the sequence of their ranks: that of their batches."""
    from accelerate.utils import gather_object

    found: list[Any] = gather_object(own)
    return found


def _from_main(work: Callable[[], int]) -> int:
    """Return what the first process finds, in all; where it raises, all raise."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            found = [work()]
        except Exception as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return int(found[0])


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
