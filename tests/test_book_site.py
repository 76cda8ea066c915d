"""What the site tells others: its buttons, descriptions, card, archive, and the PDF."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from docutils import nodes

from tma.study import claims

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "book" / "runs"
TOLD = {
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "owner/name",
    "GITHUB_REF_NAME": "main",
}
PAGE = "# Orders\n\nNearest first, then {ref}`the rest <rest>`.\n\n(rest)=\n## The rest\n\nMore.\n"


def extension(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "book" / "_extensions" / f"book_{name}.py"))


def manifest(runs: Path, key: str, finished: str) -> None:
    (runs / key).mkdir(parents=True)
    settings = {"order": "tma_nft", "dataset": "suite", "model": "m", "fold": 0, "seed": 1}
    told = {"key": key, "config": settings, "instances": 1010, "steps": 64, "finished": finished}
    text = json.dumps(told | {"versions": {"tma": "0.1.0"}})
    (runs / key / "manifest.json").write_text(text, encoding="utf-8")


def test_the_foot_of_a_page_names_the_day_of_the_newest_run(tmp_path: Path) -> None:
    updated = extension("site")["updated"]
    assert updated(tmp_path) == "No results yet"
    manifest(tmp_path, "aa", "2026-11-03T23:59:59+00:00")
    assert updated(tmp_path) == "Results last updated: 3 November 2026, 1 run"
    manifest(tmp_path, "ab", "2026-10-26T09:36:28+00:00")
    assert updated(tmp_path) == "Results last updated: 3 November 2026, 2 runs"


def test_buttons_lead_to_the_repository_that_the_workflow_names_and_nowhere_else() -> None:
    buttons = extension("site")["buttons"]
    found = buttons(TOLD)
    assert found["repository_url"] == "https://github.com/owner/name"
    assert found["launch_buttons"] == {"colab_url": "https://colab.research.google.com"}
    for name in TOLD:
        assert buttons({key: text for key, text in TOLD.items() if key != name}) == {}
    own = buttons(TOLD | {"GITHUB_SERVER_URL": "https://git.example"})
    assert own["repository_provider"] == "github"
    assert "launch_buttons" not in own


def test_a_description_is_the_beginning_of_the_first_paragraph() -> None:
    opening = extension("meta")["opening"]
    document, section = nodes.document(None, None), nodes.section()
    document += section
    assert opening(document) == ""
    section += nodes.note("", nodes.paragraph("", "A note."))
    section += nodes.paragraph("", "Which rows\ncome first? " + 50 * "word ")
    text = opening(document)
    assert text.startswith("Which rows come first? word")
    assert text.endswith(" word …")
    assert len(text) <= 200


def test_the_card_says_every_claim_of_the_paper_with_its_verdict() -> None:
    meta = extension("meta")
    made = [claims.untested(claim, "why") for claim in claims.CLAIMS]
    made[5] = claims.Verdict("C6", "n", "m", -0.2, -0.3, -0.1, 90, 3, "supported")
    drawn = meta["card"]("Orders & tasks", made)
    assert drawn.count("<circle") == 8
    assert drawn.count(f'fill="{meta["FILLS"]["supported"]}" stroke') == 1
    assert "Orders &amp; tasks" in drawn
    assert drawn.count(">supported<") == 1


def test_the_archive_describes_each_published_run_and_file() -> None:
    runs = extension("runs")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    graph = runs["crate"](RUNS, citation)["@graph"]
    by = {entity["@id"]: entity for entity in graph}
    assert len(by) == len(graph)
    files = {path.relative_to(RUNS.parent).as_posix() for path in RUNS.rglob("*") if path.is_file()}
    assert {name for name, entity in by.items() if entity["@type"] == "File"} == files
    assert {Path(name).name for name in files} <= set(runs["KINDS"])
    assert all(
        by[name]["contentSize"] == str((RUNS.parent / name).stat().st_size) for name in files
    )
    newest = max(json.loads(p.read_text())["finished"] for p in RUNS.glob("*/manifest.json"))
    assert by["./"]["datePublished"] == newest[:10]
    assert by["./"]["citation"] == {"@id": "https://doi.org/10.18653/v1/2025.findings-acl.13"}
    assert by[by["./"]["license"]["@id"]]["name"] == "Apache License 2.0"


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for one in value for name in references(one)]
    return [value["@id"]] if isinstance(value, dict) else []


def test_the_archive_conforms_to_ro_crate_1_1(tmp_path: Path) -> None:
    """The specification's rules for the descriptor, the root, and the graph: flat and whole."""
    manifest(tmp_path / "runs", "aa", "2026-11-26T09:36:28+00:00")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    crate = extension("runs")["crate"](tmp_path / "runs", citation)
    assert crate["@context"] == "https://w3id.org/ro/crate/1.1/context"
    by = {entity["@id"]: entity for entity in crate["@graph"]}
    assert by["ro-crate-metadata.json"] == {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    assert by["./"]["@type"] == "Dataset"
    assert {"name", "description", "license"} <= set(by["./"])
    assert by["./"]["datePublished"] == "2026-11-26"
    for entity in crate["@graph"]:
        assert entity["@type"]
        for value in entity.values():
            assert set(references(value)) <= {*by, "https://w3id.org/ro/crate/1.1"}
            assert not isinstance(value, dict) or set(value) == {"@id"}
    reached = ["./"]
    for name in reached:
        reached += references(by[name].get("hasPart", []))
    data = {n for n, e in by.items() if e["@type"] in ("Dataset", "File")}
    assert set(reached) == data == {"./", "runs/", "runs/aa/", "runs/aa/manifest.json"}
    assert by["#made-aa"]["instrument"] == {"@id": "#tma-0.1.0"}
    assert by["#tma-0.1.0"]["creator"] == {"@id": "#authors"}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A book of two pages, built in a plain environment, and as the workflow builds it."""
    return {
        "plain": build(tmp_path_factory.mktemp("plain"), {}),
        "told": build(tmp_path_factory.mktemp("told"), TOLD | {"BOOK_URL": "https://o.example/n"}),
    }


def build(folder: Path, told: dict[str, str]) -> Path:
    book, (notebook, *_) = folder / "book", sorted((ROOT / "notebooks").glob("06*.ipynb"))
    (book / "notebooks").mkdir(parents=True)
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, folder)
    for name in ("_extensions", "_static", "images"):
        shutil.copytree(ROOT / "book" / name, book / name)
    for name in ("claims.json", "references.bib"):
        shutil.copy(ROOT / "book" / name, book)
    manifest(book / "runs", "aa", "2026-11-26T09:36:28+00:00")
    (folder / "_build" / "pdf").mkdir(parents=True)
    if told:
        (folder / "_build" / "pdf" / "tma.pdf").write_bytes(b"%PDF")
    chapter = json.loads(notebook.read_text(encoding="utf-8"))
    chapter["cells"] = [{"cell_type": "markdown", "metadata": {}, "source": "# Own\n\nYour data."}]
    (book / "notebooks" / "06.ipynb").write_text(json.dumps(chapter), encoding="utf-8")
    (book / "intro.md").write_text(PAGE, encoding="utf-8")
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nchapters:\n- file: notebooks/06\n"
    )
    plain = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", "book/", "--all", "-W", "-n", "--keep-going"]
    done = subprocess.run(
        command, cwd=folder, env=plain | told, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "_build" / "html"


def text(site: Path, page: str) -> str:
    return (site / f"{page}.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_without_a_known_address_none_is_on_a_page(sites: dict[str, Path]) -> None:
    for page in ("intro", "notebooks/06"):
        found = text(sites["plain"], page)
        assert "source-repository-button" not in found
        assert "colab" not in found
        assert "og:image" not in found
        assert "tma.pdf" not in found
        assert "Results last updated: 26 November 2026, 1 run<" in found


@pytest.mark.slow
def test_on_github_pages_lead_to_their_source(sites: dict[str, Path]) -> None:
    intro, chapter = (text(sites["told"], page) for page in ("intro", "notebooks/06"))
    source = "https://github.com/owner/name"
    assert f'href="{source}"' in intro
    assert f'href="{source}/edit/main/book/intro.md"' in intro
    assert f'href="{source}/edit/main/notebooks/06.md"' in chapter
    assert f"{source}/issues/new?title=" in intro
    colab = "https://colab.research.google.com/github/owner/name/blob/main/book/notebooks/06.ipynb"
    assert f'href="{colab}"' in chapter
    assert "colab" not in intro
    assert '<a href="tma.pdf">' in intro
    assert (sites["told"] / "tma.pdf").read_bytes() == b"%PDF"


@pytest.mark.slow
def test_every_page_is_described_and_names_the_card(sites: dict[str, Path]) -> None:
    for page, words in (("intro", "Nearest first, then the rest."), ("notebooks/06", "Your data.")):
        found = text(sites["told"], page)
        assert found.count('<meta name="description"') == 1
        assert f'<meta name="description" content="{words}" />' in found
        assert f'<meta property="og:description" content="{words}" />' in found
        assert '<meta property="og:image" content="https://o.example/n/card.png" />' in found
    assert '<meta name="description" content="Search: ' in text(sites["told"], "search")
    header = (sites["told"] / "card.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (1200, 630)


@pytest.mark.slow
def test_card_and_archive_are_the_same_in_each_build(sites: dict[str, Path]) -> None:
    for name in ("card.png", "runs.zip"):
        plain, told = (hashlib.sha256((s / name).read_bytes()).digest() for s in sites.values())
        assert plain == told
    with zipfile.ZipFile(sites["plain"] / "runs.zip") as archive:
        assert archive.namelist() == ["ro-crate-metadata.json", "runs/aa/manifest.json"]
        described = json.loads(archive.read("ro-crate-metadata.json"))
    assert described["@graph"][0]["about"] == {"@id": "./"}


@pytest.mark.slow
def test_the_pdf_has_upright_pages_and_turns_a_table_that_does_not_fit(tmp_path: Path) -> None:
    pdf = runpy.run_path(str(ROOT / "book" / "pdf.py"))
    if not any(map(shutil.which, pdf["BROWSERS"])):
        pytest.skip("there is no Chromium here")
    style = (ROOT / "book" / "_static" / "print.css").as_uri()
    cells = "".join(f"<td>{'n' * 40}</td>" for _ in range(4))
    (tmp_path / "page.html").write_text(
        f'<html data-theme="dark"><link rel="stylesheet" href="{style}"><body>'
        "<article class='bd-article'><h1>One</h1><button>Copy</button><table><tr><td>1</td></tr>"
        f"</table><table><tr>{cells}</tr></table><p>Last</p></article></body></html>"
    )
    pdf["print_page"](tmp_path / "page.html", tmp_path / "out" / "tma.pdf")
    printed = (tmp_path / "out" / "tma.pdf").read_bytes()
    sizes = re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", printed)
    assert [float(width) > float(height) for width, height in sizes] == [False, True, False]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tma.pdf"]


def test_the_workflow_builds_the_pdf_before_the_pages_that_link_it() -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    steps = flow["jobs"]["book"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["make pdf", "make book"]
    [book] = [step for step in steps if step.get("run") == "make book"]
    assert book["env"] == {"BOOK_URL": "${{ steps.pages.outputs.base_url }}"}
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "book/pdf.py _build/singlehtml/intro.html _build/pdf/tma.pdf" in make


def test_a_container_of_an_editor_uses_the_environment_of_its_own_checkout() -> None:
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert told["postCreateCommand"] == "make .venv/.ready"
    assert told["remoteEnv"]["PATH"].startswith("${containerWorkspaceFolder}/.venv/bin:")
