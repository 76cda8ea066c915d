"""How long fine-tuning and its measuring take: ours, the original code's way, and TRL.

Real instances (those of `--data`, else of the P3 file in ../shared/data/p3 if there is one, else of
the suite `pocket`), SmolLM2-135M, the same
precision, the same micro-batch budget of 4 × 1,024 tokens, 16 instances a step, one run of each
system in one process, in turn. Each first does four instances that are not timed: memory that one
system gave back must not have to be fetched again in the time of the next.

tma       our loop: instances packed side by side, the logits of response positions only
padded    every instance padded to 1,024 tokens, all logits, as the original code does
trl       `SFTTrainer`, sequential, loss on the completion only, padded to the longest of four

Case `training`: optimizer steps over all instances. Case `evaluation`: the loss of each instance
(TRL: its `evaluate`, whose loss is a mean). The losses stand beside each other: of the first step
for training, and the mean over response tokens for evaluation.

    python -m benchmarks.training [--quick] [--case CASE] [--json FILE] [--data FILE]
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch.nn.functional import cross_entropy

import tma
from benchmarks.arrangement import measured
from tma.runs.config import RunConfig
from tma.train import models
from tma.train.encode import Encoded, encode
from tma.train.evaluate import arithmetic, resolve_precision, response_losses
from tma.train.loop import train
from tma.train.packing import packs

MODEL, WIDTH, ROWS, STEP = "smollm2-135m-instruct", 1024, 4, 16
COUNT, QUICK = 200, 16
"""Instances, and those of `--quick`."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Timing:
    """One line of the table."""

    case: str
    system: str
    seconds: float
    response_tokens_per_s: float
    ratio_to_ours: float
    loss: float
    peak_mb: float


def real_data(root: Path = ROOT) -> str:
    """Return the P3 file that lies beside the repository, else the name of the built-in suite."""
    found = sorted((root.parent / "shared" / "data" / "p3").glob("*.parquet"))
    return str(found[0]) if found else "pocket"


def instances(name: str, count: int) -> Dataset:
    """Return the first instances, at most so many, in an order that mixes the tasks."""
    data = tma.load(name, split="train").shuffle(seed=0)
    return data.select(range(min(count, len(data))))


class Work:
    """What every system gets, and what it finds."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.model, self.tokenizer = models.load(MODEL)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.start = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.rows = encode(data, self.tokenizer, WIDTH)
        self.tokens = sum(row.response_tokens for row in self.rows)
        self.precision = resolve_precision("auto", self.device)
        self.loss = self.seconds = math.nan

    def reset(self) -> None:
        """Give the model its first weights back."""
        self.model.load_state_dict(self.start)
        self.model.zero_grad(set_to_none=True)
        gc.collect()


def ours_trains(work: Work) -> None:
    sizes = {"batch_size": STEP, "max_tokens": WIDTH, "micro_tokens": ROWS * WIDTH}
    given = {"model": MODEL, "dataset": "pocket", "order": "random", "limit": None}
    rest = {"eval_every": 10**6, "learning_rate": 1e-5, "precision": work.precision}
    config = RunConfig(**given, **sizes, **rest)
    work.loss = train(work.model, work.rows, work.rows[:1], config).steps[0]["loss"]


def ours_measures(work: Work) -> None:
    packed = packs(work.model, work.device)
    found = response_losses(work.model, work.rows, ROWS * WIDTH, work.precision, packed=packed)
    work.loss = float(found.sum() / work.tokens)


def padded_losses(work: Work, rows: Sequence[Encoded]) -> torch.Tensor:
    """Return the summed response loss of rows padded to `WIDTH`, from all their logits."""
    tokens = torch.zeros(len(rows), WIDTH, dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for at, row in enumerate(rows):
        ids = torch.tensor(row.tokens)
        tokens[at, : len(ids)], mask[at, : len(ids)] = ids, 1
        labels[at, row.response_start : len(ids)] = ids[row.response_start :]
    tokens, mask, labels = (part.to(work.device) for part in (tokens, mask, labels))
    logits = work.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"
    )


def padded_trains(work: Work) -> None:
    optimizer = torch.optim.AdamW(work.model.parameters(), 1e-5, weight_decay=0, fused=True)
    work.model.train()
    for start in range(0, len(work.rows), STEP):
        step = work.rows[start : start + STEP]
        tokens, total = sum(row.response_tokens for row in step), 0.0
        for at in range(0, len(step), ROWS):
            with arithmetic(work.model, work.precision):
                loss = padded_losses(work, step[at : at + ROWS]) / tokens
            loss.backward()
            total += float(loss.detach())
        if not start:
            work.loss = total
        torch.nn.utils.clip_grad_norm_(work.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def padded_measures(work: Work) -> None:
    total = 0.0
    work.model.eval()
    with torch.no_grad(), arithmetic(work.model, work.precision):
        for at in range(0, len(work.rows), ROWS):
            total += float(padded_losses(work, work.rows[at : at + ROWS]))
    work.loss = total / work.tokens


def trainer(work: Work, folder: str) -> Any:
    """Return TRL's trainer over the same tokens, in the same sequence."""
    from trl import SFTConfig, SFTTrainer

    table = Dataset.from_list(
        [
            {
                "input_ids": list(row.tokens),
                "completion_mask": [int(k >= row.response_start) for k in range(len(row.tokens))],
            }
            for row in work.rows
        ]
    )
    settings = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=ROWS,
        per_device_eval_batch_size=ROWS,
        gradient_accumulation_steps=STEP // ROWS,
        train_sampling_strategy="sequential",
        completion_only_loss=True,
        max_length=WIDTH,
        num_train_epochs=1,
        learning_rate=1e-5,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        bf16=work.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=work.model, args=settings, train_dataset=table, eval_dataset=table,
        processing_class=work.tokenizer,
    )  # fmt: skip


@contextmanager
def trl(work: Work) -> Iterator[Any]:
    """Yield TRL's trainer; leave nothing of its precision to what accelerate does next."""
    before = dict(os.environ)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield trainer(work, folder)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in set(os.environ) - set(before):
            del os.environ[name]


def trl_trains(work: Work) -> None:
    with trl(work) as made:
        started = time.perf_counter()
        made.train()
        work.seconds = time.perf_counter() - started  # its preparing is not counted
        work.loss = next(e["loss"] for e in made.state.log_history if "loss" in e)


def trl_measures(work: Work) -> None:
    with trl(work) as made:
        started = time.perf_counter()
        work.loss = made.evaluate()["eval_loss"]
        work.seconds = time.perf_counter() - started


System = Callable[[Work], None]
CASES: dict[str, dict[str, System]] = {
    "training": {"tma": ours_trains, "padded": padded_trains, "trl": trl_trains},
    "evaluation": {"tma": ours_measures, "padded": padded_measures, "trl": trl_measures},
}


def warm_up(work: Work, system: System) -> None:
    """Let a system do a few instances."""
    rows = work.rows
    work.rows = rows[:ROWS]
    system(work)
    work.rows = rows


def timings(work: Work, case: str) -> list[Timing]:
    """Return the lines of one case."""
    lines: list[Timing] = []
    for name, system in CASES[case].items():
        warm_up(work, system)
        work.reset()
        work.seconds = math.nan
        whole, peak = measured(functools.partial(system, work))
        seconds = whole if math.isnan(work.seconds) else work.seconds
        ours = lines[0].seconds if lines else seconds
        rate = work.tokens / seconds
        lines.append(
            Timing(case, name, round(seconds, 2), round(rate, 2), round(seconds / ours, 2),
                   round(work.loss, 4), round(peak))
        )  # fmt: skip
        print_line(lines[-1])
    return lines


def print_line(line: Timing) -> None:
    print(
        f"{line.case:<12}{line.system:<8}{line.seconds:>9.1f}{line.response_tokens_per_s:>14.1f}"
        f"{line.ratio_to_ours:>8.2f}{line.loss:>9.4f}{line.peak_mb:>9.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} instances, not {COUNT}")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--case", choices=tuple(CASES), help="only this one; default: all")
    parser.add_argument("--data", help="a dataset; default: see above")
    arguments = parser.parse_args()
    name = arguments.data or real_data()
    work = Work(instances(name, QUICK if arguments.quick else COUNT))
    print(f"{len(work.rows)} instances of {name}, {work.tokens} response tokens, {work.precision}")
    print(
        f"{'case':<12}{'system':<8}{'seconds':>9}{'response tok/s':>14}{'ratio':>8}"
        f"{'loss':>9}{'peak MB':>9}"
    )
    cases = [arguments.case] if arguments.case else list(CASES)
    lines = [line for case in cases for line in timings(work, case)]
    if arguments.json:
        rows = [asdict(line) for line in lines]
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", "ascii")


if __name__ == "__main__":
    main()
