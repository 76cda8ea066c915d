"""What a reader relies on: no typed results, told figures, commands that exist, links that lead.

Each check returns its complaints, so that a planted fault shows that it can fail.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup, Tag

from tests import test_book
from tests.test_book import CHAPTERS, ROOT, pages, verdicts
from tma.study import arms, claims

site = test_book.site
"""The fixture, whose build both files use."""
PROSE = ["README.md", *(f"book/{name}.md" for name in ("intro", "claims", "should_i_order"))]
PROSE += [f"notebooks/{path.stem}.md" for path in CHAPTERS]

NO_PROSE = {
    "the settings of a notebook": r"\A---\n.*?\n---\n",
    "the result that `make publish` writes": r"<!-- result: .*?<!-- /result -->",
    "code, and figures drawn from data": r"```.*?```",
    "a formula": r"\$\$.*?\$\$|\$[^$\n]+\$",
    "code in a line, and what a role gives": r"(?:\{[\w:]+\})?`[^`]*`",
    "what the paper found, which is cited": r"\*\*What the paper found\.\*\*.*?\n\n",
    "where a link leads": r"\]\([^)]*\)",
}
ALLOWED = {
    "the level of every interval": r"95%",
    "the version of a program": r"Python 3\.11",
    "a size on disk": r"\d+\.\d+ GB",
    "the name of a licence": r"(?:Apache|Apache License|BY(?:-\w+)*|AFL)[- ]\d\.\d",
}
NUMBER = re.compile(r"(?<![\w.)])[+−-]\d[\d.,]*|\d+\.\d+|\d+ ?%")


def typed_numbers(text: str) -> list[str]:
    """Decimal numbers, percentages and signed numbers in prose."""
    text = re.sub(r"```\{admonition\}(.*?)```", r"\1", text, flags=re.DOTALL)  # it is prose
    for pattern in NO_PROSE.values():
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    for pattern in ALLOWED.values():
        text = re.sub(pattern, " ", text)
    return [found[0] for found in NUMBER.finditer(text)]


@pytest.mark.parametrize("name", PROSE)
def test_no_result_is_typed_into_prose(name: str) -> None:
    assert typed_numbers((ROOT / name).read_text(encoding="utf-8")) == []


def test_every_exception_for_a_typed_number_is_needed() -> None:
    every = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in PROSE)
    assert [reason for reason, kept in ALLOWED.items() if not re.search(kept, every)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("NFT ends 0.023 below RT, in 95% of cases.", ["0.023"]),
        ("It gains -0.02 (-0.2 to +0.2).", ["-0.02", "-0.2", "+0.2"]),
        ("It holds in 81% of tasks, by −3 nats.", ["81%", "−3"]),
        ("| NFT − RT | 0.5 |", ["0.5"]),
        ("```{admonition} How far\nIt falls by 0.5.\n```", ["0.5"]),
        ("```bash\nx 0.5\n```\n`0.5` $0.5$ {glue:text}`nft:+.3f` [a](b/0.5) C6 2-3 gemma-7", []),
        ("**What the paper found.** It ends at 0.5.\n\nOurs ends at 0.6.", ["0.6"]),
        ("<!-- result: by -->\n-0.5\n<!-- /result -->", []),
    ],
)
def test_a_typed_number_is_found_and_nothing_else(text: str, found: list[str]) -> None:
    assert typed_numbers(text) == found


Pages = Mapping[str, BeautifulSoup]


@pytest.fixture(scope="module")
def read_pages(site: Path) -> dict[str, BeautifulSoup]:
    """Pages of the site by their address, without the one that is there for the tests alone."""
    return {
        page.relative_to(site).as_posix(): BeautifulSoup(page.read_text("utf-8"), "html.parser")
        for page in pages(site)
        if page.stem != "charts"
    }


def text_of(tag: Tag | None) -> str:
    """The words of a tag; lines may end anywhere, and Sphinx bends apostrophes."""
    return "" if tag is None else " ".join(tag.get_text().replace("’", "'").split())


def labels(tag: Tag) -> list[str]:
    """What those are told who do not see the pictures in a tag."""
    drawn = [str(svg.get("aria-label", "")) for svg in tag.select("svg[role=img]")]
    return [str(image.get("alt", "")) for image in tag.select("img")] + drawn


def untold_figures(read: Pages) -> list[str]:
    """Figures without a name, a caption, a label or a mention, and pictures outside figures."""
    mentioned = {
        str(link["href"]).partition("#")[2]
        for page in read.values()
        for link in page.select("article a.reference.internal[href*='#']")
        if link.find_parent("figcaption") is None
    }
    wrong = list[str]()
    for name, page in read.items():
        for figure in page.select("article figure"):
            own = str(figure.get("id", ""))
            told = [
                *(["name"] if not own.startswith("fig-") else []),
                *(["caption"] if len(text_of(figure.figcaption)) < 40 else []),
                *(["label"] if min(map(len, labels(figure)), default=0) < 40 else []),
                *(["mention"] if own not in mentioned else []),
            ]
            wrong += [f"{name}: {own or 'a figure'} lacks a {lacking}" for lacking in told]
        loose = page.select("article :is(img, svg[role=img])")
        wrong += [f"{name}: no figure" for one in loose if one.find_parent("figure") is None]
    return wrong


def test_every_figure_is_named_captioned_labelled_and_mentioned(
    read_pages: dict[str, BeautifulSoup],
) -> None:
    assert untold_figures(read_pages) == []
    assert sum(len(page.select("article figure")) for page in read_pages.values()) > 10


WORDS = "Two lines, of which one falls and the other one stays."
FIGURE = f'<figure id="fig-a"><img alt="{WORDS}"><figcaption>{WORDS}</figcaption></figure>'
DRAWN = FIGURE.replace("<img alt", '<svg role="img" aria-label')
MENTION = '<a class="reference internal" href="#fig-a">Fig. 1</a>'


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (FIGURE + MENTION, []),
        (DRAWN + MENTION, []),
        (FIGURE, ["a: fig-a lacks a mention"]),
        (FIGURE.replace(WORDS, f"{WORDS}{MENTION}"), ["a: fig-a lacks a mention"]),
        (FIGURE.replace(f'alt="{WORDS}"', 'alt="a.svg"') + MENTION, ["a: fig-a lacks a label"]),
        (DRAWN.replace("aria-label", "title") + MENTION, ["a: fig-a lacks a label"]),
        (FIGURE.replace(f"{WORDS}</fig", "A.</fig") + MENTION, ["a: fig-a lacks a caption"]),
        (
            FIGURE.replace(' id="fig-a"', "") + MENTION,
            ["a: a figure lacks a name", "a: a figure lacks a mention"],
        ),
        (f'<img alt="{WORDS}">', ["a: no figure"]),
    ],
)
def test_a_figure_that_lacks_something_is_found(text: str, wrong: list[str]) -> None:
    page = BeautifulSoup(f"<article>{text}</article>", "html.parser")
    assert untold_figures({"a": page}) == wrong


def broken_links(site: Path, read: Pages) -> list[str]:
    """Links inside the site to no file, or to no place in a page."""
    places = {
        (site / name).resolve(): {str(tag["id"]) for tag in page.select("[id]")}
        for name, page in read.items()
    }
    wrong = list[str]()
    for name, page in read.items():
        here = (site / name).resolve()
        for link in page.select("a[href]"):
            address = str(link["href"])
            if re.match(r"[a-z]+:", address):
                continue
            path, _, place = address.partition("#")
            target = (here.parent / unquote(path.partition("?")[0])).resolve() if path else here
            known = places.get(target)
            lost = place not in known if known is not None and place else not target.is_file()
            wrong += [f"{name}: {address}"] * lost
    return wrong


def test_every_link_inside_the_site_leads_to_a_place(
    site: Path, read_pages: dict[str, BeautifulSoup]
) -> None:
    assert broken_links(site, read_pages) == []


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("#there", []),
        ("b.html#other", []),
        ("data.zip", []),
        ("https://example.org/#none", []),
        ("#none", ["a.html: #none"]),
        ("b.html#there", ["a.html: b.html#there"]),
        ("c.html", ["a.html: c.html"]),
    ],
)
def test_a_link_to_nowhere_is_found(tmp_path: Path, address: str, wrong: list[str]) -> None:
    texts = {
        "a.html": f'<p id="there"><a href="{address}">a</a></p>',
        "b.html": '<p id="other"></p>',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "data.zip").touch()
    read = {name: BeautifulSoup(text, "html.parser") for name, text in texts.items()}
    assert broken_links(tmp_path, read) == wrong


def lost_in_markdown(text: str, root: Path) -> list[str]:
    """Links of a page of the checkout to no file, or to no heading of the page itself."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    own = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [
        link
        for link in found
        if not re.match(r"[a-z]+:", link)
        and not (link[1:] in own if link[0] == "#" else (root / link.partition("#")[0]).exists())
    ]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_checkout_lead_to_files(name: str) -> None:
    assert lost_in_markdown((ROOT / name).read_text(encoding="utf-8"), ROOT) == []


def test_a_lost_link_of_the_checkout_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").touch()
    text = "# Some terms\n[a](a.md) [b](b.md) [c](#some-terms) [d](#none) [e](https://e.org)"
    assert lost_in_markdown(text, tmp_path) == ["b.md", "#none"]


def untraced(made: list[claims.Verdict], book: Path) -> list[str]:
    """Claims whose runs or commands are not those of their chapter and the plan."""
    planned, wrong = {arm.name for arm in arms.ARMS}, list[str]()
    for verdict in made:
        chapter = book / "notebooks" / f"{verdict.notebook}.ipynb"
        make, read = claims.commands(verdict.claim)
        named = {*make.removeprefix("tma study --arms ").split(",")}
        if not named <= planned:
            wrong.append(f"{verdict.claim}: no arm {', '.join(sorted(named - planned))}")
        if f" notebooks/{verdict.notebook}.ipynb " not in read or not chapter.is_file():
            wrong.append(f"{verdict.claim}: its chapter is not read")
        elif verdict.runs is None or f"Made from {verdict.runs}." not in chapter.read_text("utf-8"):
            wrong.append(f"{verdict.claim}: its chapter shows other runs than {verdict.runs}")
    return wrong


def test_every_claim_names_its_runs_and_how_to_make_them() -> None:
    assert untraced(verdicts(), ROOT / "book") == []
    assert [verdict.claim for verdict in verdicts()] == list(claims.CLAIMS)


def test_a_claim_of_other_runs_or_arms_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = verdicts()
    strange = [replace(first, runs="2 runs, abc"), replace(first, runs=None)]
    told = [f"C1: its chapter shows other runs than {one.runs}" for one in strange]
    assert untraced(strange, ROOT / "book") == told
    moved = replace(first, notebook="04_tma")
    assert untraced([moved], ROOT / "book") == ["C1: its chapter is not read"]
    monkeypatch.setitem(claims.ARMS, "C1", "1,9z")
    assert untraced([first], ROOT / "book") == ["C1: no arm 9z"]


def disagreements(made: list[claims.Verdict], readme: str, landing: Tag, table: Tag) -> list[str]:
    """What the README, the landing page and the page of the claims say otherwise than verdicts."""
    words, drawn = text_of(landing), html.unescape(" ".join(labels(landing)))
    result = re.search(r"<!-- result: [^>]*-->(.*?)<!-- /result -->", readme, re.DOTALL)
    answers = [" ".join(one.replace("**", "").split()) for one in result[1].split("\n- ")[1:]]
    wrong = [f"landing page: {one}" for one in answers if one not in words]
    if claims.counts(made) not in " ".join(answers):
        wrong.append(f"README: {claims.counts(made)}")
    rows = [text_of(row) for row in table.select("article tbody tr")]
    groups = [text_of(strong) for strong in table.select("article p > strong")]
    for verdict in made:
        cells = claims.cells(verdict)
        if f"{claims.SHORT[verdict.claim]}: {verdict.verdict}" not in drawn:
            wrong.append(f"drawing: {verdict.claim}")
        wanted = [cells["measured here"], cells["estimate (95% interval)"], cells["n · seeds"]]
        if not any(all(part in row for part in wanted) for row in rows):
            wrong.append(f"claims: {verdict.claim}")
        if cells["verdict"].capitalize() not in groups:
            wrong.append(f"claims: nothing is {cells['verdict']}")
    return wrong


def test_readme_landing_page_and_claims_say_the_same(
    read_pages: dict[str, BeautifulSoup],
) -> None:
    readme, made = (ROOT / "README.md").read_text(encoding="utf-8"), verdicts()
    shown = readme, read_pages["intro.html"], read_pages["claims.html"]
    assert disagreements(made, *shown) == []
    other = {"estimate": 0.123, "low": 0.1, "high": 0.2, "verdict": "not supported"}
    changed = [replace(one, **other) if one.claim == "C6" else one for one in made]
    found = [text.partition(":")[0] for text in disagreements(changed, *shown)]
    assert {*found} == {"README", "drawing", "claims"}
    other_words = shown[0].replace("comes early", "comes late")
    found = [text.partition(":")[0] for text in disagreements(made, other_words, *shown[1:])]
    assert found == ["landing page"]


def test_facts_are_those_of_the_plan_and_the_published_runs(tmp_path: Path) -> None:
    from book_facts import facts, progress

    index = ROOT / "book" / "runs"
    known, found = facts(index), progress(index)
    assert known["runs-made"] == str(len([*index.glob("*/manifest.json")]))
    assert (known["runs-planned-1"], known["runs-planned-1b"]) == ("35", "25")
    assert known["runs-planned"] == "207"
    assert (known["steps"], known["instances"], known["pool"]) == ("64", "1,024", "10,000")
    assert known["test-instances"] == "1,200"
    assert (known["tasks"], known["sources"], known["seeds"]) == ("98", "28", "5")
    assert known["parameters-gemma"] == "270 million"
    assert known["parameters-llama"] == "135 million"
    assert known["newest-run"] >= "2026-11-26"
    assert found.of("1,1b")[1] == 60
    # A folder of one run of arm 1 and of one that no arm has.
    [first, *_] = found.runs["1", "tma_rt"]
    for key in ("a", "b"):
        shutil.copytree(first.folder, tmp_path / key)
    manifest = (tmp_path / "b" / "manifest.json").read_text("utf-8")
    (tmp_path / "b" / "manifest.json").write_text(manifest.replace('"limit": 1024', '"limit": 9'))
    few = facts(tmp_path)
    assert (few["runs-made"], few["runs-made-1"], few["test-instances"]) == ("1", "1", "240")
    assert (few["arms-complete"], few["arms-begun"]) == ("none", "1 (1 of 35)")
    assert few["arms-not-begun"] == "2, 1b, 3, 4, 5, 6, 6b, 7a, 7b, 8a, 8b and 8c"
    assert facts(tmp_path / "none")["test-instances"] == "0"


def test_a_fact_of_an_unknown_name_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import book_facts

    class Environment:
        srcdir, docname = str(ROOT / "book"), "intro"

        def note_dependency(self, name: str) -> None:
            assert name == "runs/index.parquet"

    told = list[str]()
    monkeypatch.setattr(book_facts.log, "warning", lambda text, *a, **k: told.append(text % a))
    monkeypatch.setattr(book_facts.Fact, "env", Environment())
    monkeypatch.setattr(book_facts.Fact, "get_location", lambda self: "intro:1")
    role = book_facts.Fact()
    role.text = "steps"
    assert role.run()[0][0].astext() == "64" and told == []
    role.text = "stpes"
    role.run()
    assert told[0].startswith("no fact is named 'stpes'; known: seeds")


def test_the_runs_of_each_claim_are_counted_by_the_plan() -> None:
    from book_claims import source, steps_to_make
    from book_facts import Progress, progress

    planned = progress(ROOT / "book" / "runs").planned
    rows = steps_to_make(Progress(planned, planned - planned, {}))[2:]
    told = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1:] for row in rows}
    assert {name: cells[0] for name, cells in told.items()} == {
        **{"C1, C2": "0 of 56", "C3": "0 of 21", "C4": "0 of 81", "C5": "0 of 81"},
        **{"C6": "0 of 75", "C7": "0 of 81", "C8": "0 of 56"},
        **{"order against selection": "0 of 81", "near-duplicates": "0 of 72"},
        "rule within a round": "0 of 60",
    }
    assert told["C6"][1] == "`tma study --arms 1,1b,6b`"
    made = replace(claims.untested("C5", "why"), model="m", steps=64, runs="2 runs, abc")
    read = "papermill notebooks/03_granularity.ipynb out.ipynb -p scale study"
    assert source(made) == f"m; 64 steps; 2 runs, abc; `tma study --arms 1,1b,2`, then `{read}`"
