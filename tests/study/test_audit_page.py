"""An audit as a folder: the page is read as a browser would."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tma
from tests.arrange.test_audit import Angles
from tma.errors import ParameterError
from tma.study.audit_page import LISTS, save_audit

EVIL = '<script>alert(1)</script><img src="https://example.org/x.png"> & 30'


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = [{"task": f"$t_{k % 3}$", "prompt": f"{k} {EVIL}", "response": "x"} for k in range(60)]
    train.append(train[0] | {"prompt": "7 " + "long" * 500})
    test = [{"prompt": f"{k} مرحبا", "response": "<b>"} for k in (5, 40, 170)]
    sets = tma.load(train), tma.load(test, answers="optional")
    target = tmp_path_factory.mktemp("audit") / "audit"
    save_audit(tma.audit(*sets, encoder=Angles()), target)
    return target


def test_the_folder_has_a_page_figures_and_lists(folder: Path) -> None:
    files = {"report.html", "summary.json", *(f"{name}.jsonl" for name in LISTS)}
    assert {file.name for file in folder.iterdir()} == files
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert (summary["order"], summary["rows"], summary["of"]) == ("tma_nft", 61, 61)
    first = [json.loads(line) for line in (folder / "first_rows.jsonl").open(encoding="utf-8")]
    assert [row["position"] for row in first] == [*range(1, 62)]
    assert first[0] | {"similarity": 1} == {
        "position": 1,
        "round": "near 1",
        "similarity": 1,
        "row": 5,
        "id": first[0]["id"],
        "place": "(given rows), row 6",
        "text": f"5 {EVIL} x",
        "test_row": 0,
        "test_id": first[0]["test_id"],
        "test_place": "(given rows), row 1",
        "test_text": "5 مرحبا <b>",
    }


def test_the_page_needs_nothing_else_and_runs_nothing(folder: Path) -> None:
    html = (folder / "report.html").read_text("utf-8")
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "img", "link", "iframe", "b"} & {*names}
    targets = [a.get(k) or "" for _, a in page.tags for k in ("src", "href", "xlink:href")]
    assert all(t.startswith("#") or t.endswith(".jsonl") for t in targets if t)
    assert not re.findall(r"url\((?!#)|@import", html)
    assert EVIL in page.text
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len({*ids})
    assert names.count("svg") == 4
    assert all(a.get("aria-label") for tag, a in page.tags if tag == "svg")


def test_the_page_fits_light_dark_and_a_phone(folder: Path) -> None:
    html = (folder / "report.html").read_text("utf-8")
    assert "prefers-color-scheme:dark" in html
    assert 'content="width=device-width,initial-scale=1"' in html
    assert "#0072b2" not in html.partition("</style>")[2].lower()  # figures take the page's colours
    assert "long" * 100 not in html  # the beginning of a text is enough
    assert '"long' + "long" * 400 not in html


def test_equal_audits_are_equal_files(folder: Path, cache: object, tmp_path: Path) -> None:
    sets = [tma.load([{"prompt": f"{k} a", "response": "b"} for k in own]) for own in ([1, 9], [5])]
    for name in ("one", "two"):
        save_audit(tma.audit(*sets, "nearest", encoder=Angles()), tmp_path / name)
    pages = [(tmp_path / name / "report.html").read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]
    with pytest.raises(ParameterError, match="folder='.*' exists; expected the name of a new"):
        save_audit(tma.audit(*sets, "nearest", encoder=Angles()), folder)
    assert {file.name for file in tmp_path.iterdir()} == {"one", "two"}


def test_an_order_without_rows_has_a_page(cache: object, tmp_path: Path) -> None:
    sets = [tma.load([{"prompt": f"{k} a", "response": "b"}]) for k in (1, 2)]
    found = tma.audit(*sets, tma.Method("tma_nft", limit=0), encoder=Angles())
    save_audit(found, tmp_path / "page")
    assert "<svg" not in (tmp_path / "page" / "report.html").read_text("utf-8")
