"""Put the published runs beside the pages as one archive, `runs.zip`; equal runs, equal bytes.

The archive describes itself by `ro-crate-metadata.json`, after the RO-Crate specification 1.1.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The moment that every file in the archive bears."""
CRATE = "ro-crate-metadata.json"
SPECIFICATION = "https://w3id.org/ro/crate/1.1"
LICENCE = "https://spdx.org/licenses/Apache-2.0"
PARQUET, JSON = "application/vnd.apache.parquet", "application/json"
KINDS = {
    "manifest.json": "Settings, inputs, versions, hardware, and the SHA-256 of the other files",
    "losses.parquet": "Loss of each test instance at each evaluation, summed over its tokens: nats",
    "training.parquet": "Loss, learning rate and tokens of each step",
    "order.json": "Ids of the training instances, in the order they were trained on",
    "order.receipt.json": "How the order was made, with digests of what it was made from",
    "similarity.parquet": "Cosine similarity of each test instance to what was just trained on",
    "distances.parquet": "Distances of each test task to all that was trained on so far",
    "answers.parquet": "Scores of generated answers, without their text",
    "index.parquet": "One row a run: its settings, its first and last loss, when it was made",
}
"""What each file holds, by its name."""

Entity = dict[str, Any]


def _to(*names: str) -> Entity | list[Entity]:
    """Return references; the specification wants a single one without a list."""
    found = [{"@id": name} for name in names]
    return found[0] if len(found) == 1 else found


def _file(path: Path, root: Path) -> Entity:
    return {
        "@id": path.relative_to(root).as_posix(),
        "@type": "File",
        "name": path.name,
        "description": KINDS.get(path.name, path.name),
        "encodingFormat": PARQUET if path.suffix == ".parquet" else JSON,
        "contentSize": str(path.stat().st_size),
    }


def _run(folder: Path, root: Path) -> Iterator[Entity]:
    """Yield a run, what made it, and its files."""
    told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    settings, place = told["config"], f"{folder.relative_to(root).as_posix()}/"
    files = [_file(path, root) for path in sorted(folder.iterdir())]
    yield {
        "@id": place,
        "@type": "Dataset",
        "name": f"{settings['order']} on {settings['dataset']}, {settings['model']}",
        "description": f"Run {told['key']}: fold {settings['fold']}, seed {settings['seed']}, "
        f"{told['instances']:,} training instances in {told['steps']:,} steps.",
        "hasPart": _to(*(file["@id"] for file in files)),
    }
    yield {
        "@id": f"#made-{told['key']}",
        "@type": "CreateAction",
        "name": f"Training and evaluation of run {told['key']}",
        "endTime": told["finished"],
        "instrument": {"@id": f"#tma-{told['versions']['tma']}"},
        "result": {"@id": place},
    }
    yield from files


def _context(citation: Mapping[str, Any], versions: Sequence[str]) -> Iterator[Entity]:
    """Yield licence, paper, software and their authors, from CITATION.cff."""
    [paper], makers = citation["references"], citation["authors"]
    address, group = f"https://doi.org/{paper['doi']}", makers[0]["name"]
    people = [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]]
    yield {
        "@id": LICENCE,
        "@type": "CreativeWork",
        "name": "Apache License 2.0",
        "description": "Use, change and redistribution, with the notice kept.",
    }
    yield {"@id": "#authors", "@type": "Organization", "name": group}
    for number, name in enumerate(people):
        yield {"@id": f"#author-{number}", "@type": "Person", "name": name}
    yield {
        "@id": address,
        "@type": "ScholarlyArticle",
        "name": paper["title"],
        "author": _to(*(f"#author-{number}" for number in range(len(people)))),
        "datePublished": str(paper["year"]),
        "isPartOf": {"@id": "#proceedings"},
    }
    yield {
        "@id": "#proceedings",
        "@type": "PublicationVolume",
        "name": paper["collection-title"],
    }
    for version in versions:
        yield {
            "@id": f"#tma-{version}",
            "@type": "SoftwareApplication",
            "name": "tma",
            "description": citation["title"],
            "version": version,
            "license": {"@id": LICENCE},
            "creator": {"@id": "#authors"},
        }


def crate(runs: Path, citation: Mapping[str, Any]) -> Entity:
    """Return the archive's description of itself: every run, every file, and what made them."""
    root, manifests = runs.parent, sorted(runs.glob("*/manifest.json"))
    told = [json.loads(path.read_text(encoding="utf-8")) for path in manifests]
    entities = [e for path in manifests for e in _run(path.parent, root)]
    entities += [_file(path, root) for path in sorted(runs.glob("*.parquet"))]
    parts = [f"runs/{path.parent.name}/" for path in manifests]
    parts += [e["@id"] for e in entities if e["@id"].count("/") == 1]
    descriptor = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": SPECIFICATION},
        "about": {"@id": "./"},
    }
    top = {
        "@id": "./",
        "@type": "Dataset",
        "name": "Published runs of tma",
        "description": "Models fine-tuned on the same data in different orders, and their losses "
        "on test instances of unseen tasks, step by step. No text of a dataset and no weights.",
        "datePublished": max((one["finished"] for one in told), default="1980-01-01")[:10],
        "license": {"@id": LICENCE},
        **{role: {"@id": "#authors"} for role in ("author", "creator", "publisher")},
        "citation": {"@id": f"https://doi.org/{citation['references'][0]['doi']}"},
        "hasPart": _to("runs/"),
    }
    folder = {
        "@id": "runs/",
        "@type": "Dataset",
        "name": "Runs",
        "description": "One folder a run, named by its settings and inputs, and an index.",
        "hasPart": _to(*parts),
    }
    versions = sorted({one["versions"]["tma"] for one in told})
    graph = [descriptor, top, folder, *_context(citation, versions), *entities]
    return {"@context": f"{SPECIFICATION}/context", "@graph": graph}


def write_archive(app: Sphinx, error: Exception | None) -> None:
    """Write losses, orders, receipts, manifests, their index, and the archive's description."""
    if error is not None or app.builder.name != "html":
        return
    runs = Path(app.srcdir) / "runs"
    cited = (runs.parent.parent / "CITATION.cff").read_text(encoding="utf-8")
    described = json.dumps(crate(runs, yaml.safe_load(cited)), indent=1, ensure_ascii=False)
    with zipfile.ZipFile(Path(app.outdir) / "runs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(CRATE, EPOCH), described, zipfile.ZIP_DEFLATED)
        for file in sorted(path for path in runs.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"runs/{file.relative_to(runs).as_posix()}", EPOCH)
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the archive when the pages are there."""
    app.connect("build-finished", write_archive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
