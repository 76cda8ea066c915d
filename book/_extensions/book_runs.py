"""Put the published runs beside the pages as one archive, `runs.zip`; equal runs, equal bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from sphinx.application import Sphinx

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The moment that every file in the archive bears."""


def write_archive(app: Sphinx, error: Exception | None) -> None:
    """Write losses, orders, receipts, manifests and their index."""
    if error is not None or app.builder.format != "html":
        return
    runs = Path(app.srcdir) / "runs"
    with zipfile.ZipFile(Path(app.outdir) / "runs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path for path in runs.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"runs/{file.relative_to(runs).as_posix()}", EPOCH)
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the archive when the pages are there."""
    app.connect("build-finished", write_archive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
