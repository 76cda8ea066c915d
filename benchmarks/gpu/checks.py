"""Orders, speeds and tests on a GPU, each part in a process of its own with a limit of time.

    python -m benchmarks.gpu.checks OUT [--only PART,…] [--small] [--seconds 300]

orders       every order made on the card and on the CPU, compared bit for bit; golden files, too
arrangement  seconds for the N nearest of n × 1,000 × 384 rows: ours from rows in host memory, and,
             on the card, the float32 product of the same blocks alone and brute force by
             `torch.topk` (rows on the card, or brought there); FAISS on the CPU, if it is there
training     tokens a second of an optimizer step and of an evaluation for the shape of
             Gemma-3-270M, random weights: ours, every instance padded to 1,024 tokens with all
             logits, and TRL's `SFTTrainer`
training-7b  the same for the shape of Llama-2-7B
tests        the tests marked `gpu`

`OUT/checks.json` is written anew after each line, and `OUT/PART.log` holds what a part printed. A
part or a line that fails leaves its error there. Without a GPU everything runs on the CPU, for
which `--small` makes it small enough. This process imports the standard library alone.

Model FLOPs are 6 × parameters × tokens of a step and 2 × of an evaluation: padding does not count
as tokens, the embedding not as parameters, unless it is the head, too; attention scores do not
count. `share_of_peak` is these over what the card could do in that time. `share_computed` counts
what is computed instead: padding, but the head only where logits are taken.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from tma.train.encode import Encoded

    Floats = NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[2]
PEAK = 989e12
"""Dense bf16 FLOP a second of an H100 SXM or H200: NVIDIA's data sheets, 1,979 TFLOP/s with
sparsity, halved."""
ORDERS = ("tma_nft", "tma_fft", "tma_rt", "nearest", "farthest")
TOPK_ROWS = 65_536
"""Rows of a block of the brute-force search."""
RUNS = 3
STATE_BYTES = 16
"""Bytes of a parameter trained in float32: weight, gradient, two moments."""
SPARE = 1.25
"""Memory over that of the parameters' state that a step wants."""


@dataclass
class Job:
    """What a part gets: where lines go, and how large to be."""

    part: str
    out: Path
    small: bool
    device: str = "cpu"

    @contextmanager
    def line(self, **case: Any) -> Iterator[dict[str, Any]]:
        """Yield a line to fill in; write it, with the error if there was one."""
        found = {"part": self.part, **case}
        started = time.perf_counter()
        try:
            yield found
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"[:600]
            found["where"] = traceback.format_exc()[-1500:]
        found["line_seconds"] = round(time.perf_counter() - started, 2)
        add(self.out, found)


def add(out: Path, line: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    """Write one more line, or other values, to `checks.json`; return all there is."""
    file, draft = out / "checks.json", out / "checks.new"
    held: dict[str, Any] = {"lines": []}
    if file.is_file():
        held = json.loads(file.read_text("utf-8"))
    held |= values
    held["lines"] += [line] if line else []
    draft.write_text(json.dumps(held, indent=1) + "\n", "utf-8")
    draft.replace(file)
    return held


def machine() -> dict[str, Any]:
    """Return card, cores and versions."""
    import torch

    from tma.runs.store import hardware

    packages = (
        "torch",
        "numpy",
        "transformers",
        "accelerate",
        "datasets",
        "trl",
        "faiss-cpu",
        "peft",
    )
    versions = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    cores = len(os.sched_getaffinity(0))
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    return {"hardware": hardware(), "cores": cores, "card_gb": memory / 1e9, "versions": versions}


def ready() -> None:
    """Wait for the card."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], object], runs: int = 1) -> list[float]:
    """Return the seconds of some calls, each from an idle card to an idle card."""
    taken = list[float]()
    for _ in range(runs):
        ready()
        started = time.perf_counter()
        function()
        ready()
        taken.append(time.perf_counter() - started)
    return taken


def measured(line: dict[str, Any], function: Callable[[], object], runs: int = RUNS) -> float:
    """Fill in the seconds of some calls and the card's peak memory; return the median."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    taken = timed(function, runs)
    median = statistics.median(taken)
    line |= {"seconds": round(median, 5), "best": round(min(taken), 5), "runs": runs}
    if torch.cuda.is_available():
        line["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return median


def orders(job: Job) -> None:
    """Compare orders made on the card with those of the CPU and of the golden files."""
    import numpy as np

    from benchmarks.arrangement import unit_rows

    for path in sorted(ROOT.glob("tests/golden/*.npz")):
        golden = np.load(path)
        X, Y = golden["train"], golden["test"]
        golden_rounds(job, path.stem, golden)
        for name in ORDERS:
            compare(job, path.stem, name, (X, Y), len(X) // 3)
            compare(job, path.stem, name, (X, Y), None)
    n = 3_000 if job.small else 100_000
    X, Y = unit_rows(n, 0), unit_rows(n // 100, 1)
    for name in ORDERS:
        compare(job, "random", name, (X, Y), n // 3)
    compare(job, "random", "tma_nft", (X, Y), None)


def golden_rounds(job: Job, data: str, golden: Any) -> None:
    """Compare all rounds, and the order by distance, with a golden file."""
    import numpy as np

    import tma

    X, Y = golden["train"], golden["test"]
    for side in ("near", "far"):
        with job.line(data=data, order=f"golden rounds, {side}") as line:
            rounds = tma.test_centric_rounds(X, Y, farthest=side == "far", device=job.device)
            sizes = [len(found) for found in rounds] == golden[f"{side}_sizes"].tolist()
            line["equal"] = sizes and bool(np.array_equal(np.concatenate(rounds), golden[side]))
    with job.line(data=data, order="golden nearest") as line:
        found = tma.arrange("nearest", X, Y, device=job.device)
        line["equal"] = bool(np.array_equal(found, golden["nft"]))


def compare(job: Job, data: str, name: str, pair: tuple[Floats, Floats], limit: int | None) -> None:
    """Make one order on both devices."""
    import numpy as np

    import tma

    X, Y = pair
    given = {"data": data, "order": name, "rows": [len(X), len(Y)], "limit": limit}
    with job.line(**given, devices=["cpu", job.device]) as line:
        found, seconds = list[Any](), list[float]()
        for device in ("cpu", job.device):
            make = partial(tma.arrange, name, X, Y, limit=limit, device=device)
            ready()
            started = time.perf_counter()
            found.append(make())
            seconds.append(time.perf_counter() - started)
        line["equal"] = bool(np.array_equal(*found))
        line |= {"length": len(found[0]), "seconds": [round(taken, 4) for taken in seconds]}


def arrangement(job: Job) -> None:
    """Time the search for the nearest rows against what it cannot undercut."""
    from benchmarks.arrangement import TESTS, needed, unit_rows

    sizes = [(100_000, 30_000), (1_000_000, 30_000)]
    searched: list[tuple[dict[str, Any], Floats, Floats, int]] = []
    for n, wanted in [(5_000, 1_000)] if job.small else sizes:
        X, Y = unit_rows(n, 0), unit_rows(50 if job.small else TESTS, 1)
        case, k = {"case": f"{n:,} × {len(Y):,}", "wanted": wanted}, 100
        searches(job, case, X, Y, wanted)
        with job.line(**case, system="depth of the deepest list, on the CPU") as line:
            line["k"] = k = needed(X, Y, wanted)
        brute_force(job, case, X, Y, k)
        searched.append((case, X, Y, k))
    for case, X, Y, k in searched:  # last: FAISS brings threads of its own
        with job.line(**case, system="faiss on the CPU", k=k) as line:
            faiss_search(line, X, Y, k)


def searches(job: Job, case: dict[str, Any], X: Floats, Y: Floats, wanted: int) -> None:
    """Time ours and the product alone."""
    import tma

    tma.test_centric_rounds(X[:5000], Y, 500, device=job.device)  # libraries set themselves up
    rounds = partial(tma.test_centric_rounds, X, Y, wanted, device=job.device)
    nft = partial(tma.arrange, "tma_nft", X, Y, limit=wanted, device=job.device)
    for system, function in {"tma rounds": rounds, "tma_nft": nft}.items():
        with job.line(**case, system=system) as line:
            measured(line, function)
    for resident in (True, False):
        with job.line(**case, system="product", rows="on the card" if resident else "host") as line:
            product(line, job.device, X, Y, resident)


def parts_of(X: Floats, rows: int, device: str, resident: bool) -> Callable[[], Iterator[Any]]:
    """Return what yields blocks of rows on the device, brought there before or each time."""
    import torch

    held = torch.from_numpy(X)
    held = held.to(device) if resident else held
    return lambda: (part.to(device) for part in torch.split(held, rows))


def product(line: dict[str, Any], device: str, X: Floats, Y: Floats, resident: bool) -> None:
    """Time the products of all blocks, of which none is kept."""
    import torch

    from tma.arrange import exact_knn

    tests = torch.from_numpy(Y).to(device)
    line["block"] = rows = max(1, exact_knn.BLOCK // len(Y))
    blocks, room = parts_of(X, rows, device, resident), torch.empty(len(Y), rows, device=device)

    def run() -> None:
        for block in blocks():
            torch.mm(tests, block.T, out=room if len(block) == rows else None)

    run()
    measured(line, run)


def brute_force(job: Job, case: dict[str, Any], X: Floats, Y: Floats, k: int) -> None:
    """Time the k highest products of every test row, block by block."""
    import torch

    tests = torch.from_numpy(Y).to(job.device)

    def run(blocks: Callable[[], Iterator[Any]]) -> Any:
        best = tests.new_empty(len(tests), 0)
        rows = torch.empty(len(tests), 0, dtype=torch.int64, device=job.device)
        for number, block in enumerate(blocks()):
            value, row = torch.topk(tests @ block.T, min(k, len(block)))
            values, both = (
                torch.cat([best, value], 1),
                torch.cat([rows, row + number * TOPK_ROWS], 1),
            )
            best, at = torch.topk(values, min(k, values.shape[1]))
            rows = both.gather(1, at)
        return rows.cpu()

    for resident in (True, False):
        at = "on the card" if resident else "host"
        with job.line(**case, system="brute force, topk", rows=at, k=k) as line:
            blocks = parts_of(X, TOPK_ROWS, job.device, resident)
            run(blocks)
            measured(line, partial(run, blocks))


def faiss_search(line: dict[str, Any], X: Floats, Y: Floats, k: int) -> None:
    """Time one search of FAISS on all cores; building the index is not counted."""
    faiss = importlib.import_module("faiss")
    index = faiss.IndexFlatIP(X.shape[1])
    index.add(X)
    index.search(Y[:10], k)
    measured(line, partial(index.search, Y, k), 1)


@dataclass(frozen=True)
class Shape:
    """A model of random weights, and how much it gets at a time."""

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    micro_tokens: int = 16_384
    padded_rows: int = 4
    """Rows of 1,024 tokens at a time."""


GEMMA = Shape(
    "Gemma-3-270M",
    "Gemma3TextConfig",
    {
        "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 256, "sliding_window": 512, "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
)  # fmt: skip
LLAMA = Shape(
    "Llama-2-7B",
    "LlamaConfig",
    {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
    micro_tokens=2048,
    padded_rows=2,
)  # fmt: skip
SMALL = {"vocab_size": 999, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@dataclass
class Built:
    """A model and our loop around it; also what `benchmarks.training` wants of its `Work`."""

    model: Any
    loop: Any
    settings: dict[str, Any]
    device: torch.device
    rows: Sequence[Encoded] = ()
    precision: str = "bf16"
    tokenizer: Any = None

    def rates(
        self, rows: Sequence[Encoded], seconds: float, factor: int, done: tuple[int, int] | None
    ) -> dict[str, float]:
        """Return tokens a second and shares of the peak; `done`: padded tokens, and logits."""
        body, head = self.sizes()
        tokens = sum(len(row.tokens) for row in rows)
        found: dict[str, float] = {"tokens": tokens, "tokens_per_s": round(tokens / seconds, 1)}
        if self.device.type == "cuda":
            able = PEAK * seconds
            found["share_of_peak"] = round(factor * (body + head) * tokens / able, 4)
            if done is not None:
                flops = factor * (body * done[0] + head * done[1])
                found["share_computed"] = round(flops / able, 4)
        return found

    def sizes(self) -> tuple[int, int]:
        """Return the parameters between embedding and head, and those of the head."""
        whole = {id(p): p.numel() for p in self.model.parameters()}
        head = self.model.get_output_embeddings().weight
        embedding = self.model.get_input_embeddings().weight
        body = sum(n for key, n in whole.items() if key not in (id(head), id(embedding)))
        return body, head.numel()


def build(shape: Shape, job: Job, rows: Sequence[Encoded]) -> Built:
    """Return a model that takes a step within the card's memory, with as much as fits in float32.

    Tried in turn: float32 weights, as tma trains; these with activations computed twice; bfloat16.
    """
    import torch

    tries = [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]
    if job.device == "cuda":
        with torch.device("meta"):
            count = sum(p.numel() for p in random_model(shape, job, "float32").parameters())
        memory = torch.cuda.get_device_properties(0).total_memory
        tries = tries[2:] if count * STATE_BYTES * SPARE > memory else tries
    for dtype, twice in tries:
        built = fitting(shape, job, dtype, twice, rows)
        if built is not None:
            return built
        gc.collect()
        torch.cuda.empty_cache()
    raise MemoryError(f"{shape.name} does not fit the card in any of {tries}")


def random_model(shape: Shape, job: Job, dtype: str) -> Any:
    import torch
    import transformers

    settings = shape.settings | (SMALL if job.small else {})
    if job.small and shape is LLAMA:
        settings |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = getattr(transformers, shape.kind)(**settings)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def fitting(
    shape: Shape, job: Job, dtype: str, twice: bool, rows: Sequence[Encoded]
) -> Built | None:
    """Return a model after its first step, or None where that wants more memory than there is."""
    import torch

    from tma.train import TrainingSettings
    from tma.train.loop import _Loop

    torch.manual_seed(0)
    try:
        with torch.device(job.device):
            model = random_model(shape, job, dtype)
        given = {"micro_tokens": shape.micro_tokens, "precision": "bf16"}
        config = TrainingSettings(model=shape.name, **given)
        if twice:  # not by `gradient_checkpointing`: transformers 5.17 has only the old name
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        loop = _Loop(model, config, None, None)
        settings = {"weights": dtype, "checkpointing": twice, "packed": loop.packed, **given}
        settings["padded_rows"] = shape.padded_rows
        built = Built(model, loop, settings, torch.device(job.device))
        loop.step(1, rows, config.learning_rate)
    except torch.OutOfMemoryError:
        return None
    return built


def random_rows(count: int, vocabulary: int) -> list[Encoded]:
    """Return instances as long as real ones: median 61 tokens, some of 1,024; responses 1 to 40."""
    import numpy as np

    from tma.train.encode import Encoded

    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(61), 1, count)), 8, 1024).astype(int)
    rows = list[Encoded]()
    for number, length in enumerate(lengths.tolist()):
        tokens = tuple(random.integers(3, vocabulary, length).tolist())
        response = min(int(random.integers(1, 41)), length - 2)
        rows.append(Encoded(f"row{number}", None, tokens, length - response))
    return rows


def training(job: Job, shape: Shape = GEMMA) -> None:
    """Time steps and evaluations of ours, of padding, and of TRL."""
    vocabulary = (SMALL if job.small else shape.settings)["vocab_size"]
    rows = random_rows(24 if job.small else 256, vocabulary)
    built: Built | None = None
    with job.line(model=shape.name, case="build") as line:
        built = build(shape, job, rows[: len(rows) // 2])
        line.update(built.settings, **dict(zip(("body", "head"), built.sizes(), strict=True)))
    if built is None:
        return
    given = {"model": shape.name, "weights": built.settings["weights"]}
    for count in (16, len(rows) // 2):
        with job.line(**given, case=f"step of {count}", system="tma") as line:
            our_step(line, built, rows[:count])
    with job.line(**given, case=f"evaluation of {len(rows)}", system="tma") as line:
        our_evaluation(line, built, rows)
    with job.line(**given, case="step of 16", system="padded") as line:
        padded(line, built, rows[:16], trains=True)
    with job.line(**given, case="evaluation of 16", system="padded") as line:
        padded(line, built, rows[:16], trains=False)
    with job.line(**given, case="step of 16", system="trl") as line:
        trl_step(line, built, rows[:16])


def our_step(line: dict[str, Any], built: Built, rows: Sequence[Encoded]) -> None:
    """Time whole optimizer steps of our loop."""
    step = partial(built.loop.step, 1, rows, 1e-6)
    with emptied(built):
        step()
        seconds = measured(line, step)
    line |= built.rates(rows, seconds, 6, our_work(built, rows))


def our_evaluation(line: dict[str, Any], built: Built, rows: Sequence[Encoded]) -> None:
    """Time the losses of all rows."""
    from tma.train.evaluate import response_losses

    budget, packed = built.settings["micro_tokens"], built.loop.packed
    run = partial(response_losses, built.model, rows, budget, "bf16", packed=packed)
    run()
    seconds = measured(line, run)
    line |= built.rates(rows, seconds, 2, our_work(built, rows))


def our_work(built: Built, rows: Sequence[Encoded]) -> tuple[int, int]:
    """Return the tokens that the model sees, padding included, and the logits taken."""
    from tma.train.packing import micro_batches

    batches = micro_batches(rows, built.settings["micro_tokens"], packed=built.loop.packed)
    return sum(b.tokens.numel() for b in batches), sum(row.response_tokens for row in rows)


def padded(line: dict[str, Any], built: Built, rows: Sequence[Encoded], *, trains: bool) -> None:
    """Time steps or evaluations of rows padded to 1,024 tokens, as many at once as fit."""
    import torch

    from benchmarks.training import WIDTH

    line["at_once"] = built.settings["padded_rows"]
    while True:
        run = partial(padded_step, built, rows, line["at_once"], trains)
        try:
            with emptied(built):
                run()
                seconds = measured(line, run)
            break
        except torch.OutOfMemoryError:
            if line["at_once"] == 1:
                raise
        line["at_once"] //= 2
    given = len(rows) * WIDTH
    line |= built.rates(rows, seconds, 6 if trains else 2, (given, given))


def padded_step(built: Built, rows: Sequence[Encoded], at_once: int, trains: bool) -> None:
    """Take a step with our optimizer, or an evaluation, of padded rows."""
    import torch

    from benchmarks.training import padded_losses
    from tma.train.evaluate import arithmetic

    built.model.train(trains)
    tokens = sum(row.response_tokens for row in rows)
    for at in range(0, len(rows), at_once):
        with torch.set_grad_enabled(trains), arithmetic(built.model, "bf16"):
            loss = padded_losses(built, rows[at : at + at_once]) / tokens
        if trains:
            loss.backward()
        float(loss.detach())
    if trains:
        torch.nn.utils.clip_grad_norm_(built.model.parameters(), 1.0)
        built.loop.optimizer.step()
        built.loop.optimizer.zero_grad()


@contextmanager
def emptied(built: Built) -> Iterator[None]:
    """Leave no gradients behind, also where memory ran out."""
    import torch

    try:
        yield
    finally:
        built.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def trl_step(line: dict[str, Any], built: Built, rows: Sequence[Encoded]) -> None:
    """Time steps of TRL's trainer, each over the same rows; our optimizer goes."""
    from transformers import TrainerCallback

    import benchmarks.training as bench

    ended = list[float]()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ready()
            ended.append(time.perf_counter())

    built.loop.optimizer = None
    built.loop.accelerator.free_memory()
    built.rows, built.tokenizer = list(rows) * (RUNS + 1), tiny_tokenizer()
    line["at_once"] = bench.ROWS = built.settings["padded_rows"]
    with emptied(built), bench.trl(built) as made:
        made.add_callback(Clock())
        made.train()
    taken = [after - before for before, after in itertools.pairwise(ended)]
    seconds = statistics.median(taken)
    line |= {"seconds": round(seconds, 5), "best": round(min(taken), 5), "runs": len(taken)}
    line |= built.rates(rows, seconds, 6, None)


def tiny_tokenizer() -> Any:
    """Return a tokenizer of three words, since TRL wants one, though the rows are tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>")  # noqa: S106
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special)


def tests(job: Job) -> None:
    """Run the tests that need a GPU."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [str(file) for file in files if "pytest.mark.gpu" in file.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *marked]
    with job.line(case="pytest -m gpu") as line:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        line |= {"status": done.returncode, "tail": (done.stdout + done.stderr)[-1500:]}


PARTS: dict[str, tuple[Callable[[Job], None], float]] = {
    "orders": (orders, 100),
    "arrangement": (arrangement, 75),
    "training": (training, 75),
    "training-7b": (partial(training, shape=LLAMA), 90),
    "tests": (tests, 75),
}
"""Function and seconds of each part, the most valuable first."""


def inside(part: str, out: Path, small: bool) -> None:
    """Run one part in this process."""
    import torch

    job = Job(part, out, small, "cuda" if torch.cuda.is_available() else "cpu")
    if "machine" not in add(out):
        add(out, machine=machine())
    PARTS[part][0](job)


def outside(part: str, out: Path, small: bool, limit: float) -> None:
    """Run one part in a process of its own; end that, and what it began, at its limit."""
    command = [sys.executable, "-m", "benchmarks.gpu.checks", str(out), "--inside", part]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env["TMA_CACHE"] = os.environ.get("TMA_CACHE") or f"{tempfile.gettempdir()}/tma-checks"
    log, started = out / f"{part}.log", time.monotonic()
    given: dict[str, Any] = {"stderr": subprocess.STDOUT, "start_new_session": True}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command + ["--small"] * small, cwd=ROOT, env=env, stdout=stream, **given
        )
        try:
            status: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = f"ended at its limit of {limit:.0f} s, exit {process.wait()}"
    seconds = round(time.monotonic() - started, 1)
    line: dict[str, Any] = {"part": part, "case": "whole part", "line_seconds": seconds}
    add(out, line | ({"error": status, "where": log.read_text()[-1500:]} if status else {}))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the lines as text."""
    names = ("part", "model", "data", "order", "case", "system", "rows", "limit", "k")
    found = ("equal", "seconds", "best", "peak_mb", "tokens_per_s", "share_of_peak")
    rest = ("share_computed", "status", "line_seconds", "error")
    out = list[str]()
    for line in lines:
        case = " | ".join(str(line[name]) for name in names if line.get(name) is not None)
        values = " ".join(f"{n}={line[n]}" for n in (*found, *rest) if n in line)
        out.append(f"{case}: {values}"[:400])
    return "\n".join(out)


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--seconds", type=float, default=300, help="of all parts together")
    parser.add_argument("--inside", choices=tuple(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.inside:
        inside(options.inside, out, options.small)
        return
    for part in options.only.split(","):
        left = options.seconds - (time.monotonic() - started)
        outside(part, out, options.small, max(1, min(PARTS[part][1], left)))
    print(table(add(out)["lines"]))


if __name__ == "__main__":
    main()
