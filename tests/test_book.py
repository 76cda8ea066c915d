from __future__ import annotations

import html
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

import tma
from tma import config, store
from tma.study import arms, claims, interactive

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book" / "notebooks").glob("*.ipynb"))
VIEWS = [(1440, "light"), (1440, "dark"), (390, "light")]
"""Width of the window in pixels, and colour scheme."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
SWITCHES = ["--disable-gpu", "--disable-quic"]
"""Besides playwright's own."""
# Formulas are set and charts drawn after the page has loaded.
SETTLED = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const count = (what) => document.querySelectorAll(what).length;
  for (let i = 0; i < 100 && count("script.tma-chart") > count(".tma-chart-box svg"); i++)
    await new Promise((done) => setTimeout(done, 100));
  await document.fonts.ready;
  if (count(".tma-chart-box")) await new Promise((done) => setTimeout(done, 300));
}"""
# Of the page over its window, of a chart over its box, or of a formula, table or figure over the
# page where its box does not scroll, in pixels.
OVERFLOW = """() => Math.max(
  document.documentElement.scrollWidth - document.documentElement.clientWidth,
  ...[...document.querySelectorAll("article :is(.math, mjx-container, table, figure, pre)")]
    .filter((box) => {
      for (let e = box; e && e.tagName != "ARTICLE"; e = e.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return false;
      return true;
    })
    .map((box) => Math.ceil(box.getBoundingClientRect().right
      - document.documentElement.clientWidth)),
  ...[...document.querySelectorAll(".tma-chart-box svg")].map(
    (chart) => Math.ceil(chart.getBoundingClientRect().right
      - chart.closest(".tma-chart-box").getBoundingClientRect().right)))"""

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


def cells(path: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def is_injected(cell: nbformat.NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def verdicts() -> list[claims.Verdict]:
    return claims.read(ROOT / "book" / "claims.json")


def charts() -> nbformat.NotebookNode:
    """A chapter of its own with an interactive figure, to be built with the others."""
    every = itertools.product(("tma_nft", "tma_rt"), (0, 4, 8), ("a</script>", "b"))
    table = pd.DataFrame(every, columns=["order", "step", "task"]).assign(loss=range(12))
    stored = interactive.loss_by_task(table)._repr_mimebundle_()
    output = nbformat.v4.new_output("execute_result", data=stored, execution_count=1)
    figure = {"caption": "Two tasks.", "name": "fig-charts"}
    alt = {"figure": figure, "image": {"alt": "Two lines that fall."}}
    cell = nbformat.v4.new_code_cell("figure", outputs=[output], execution_count=1)
    cell.metadata["mystnb"] = alt
    title = nbformat.v4.new_markdown_cell("# Charts")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    lexer = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return nbformat.v4.new_notebook(cells=[title, cell], metadata=kernel | lexer)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book and a page with a chart, built once from a copy with every warning an error."""
    base = tmp_path_factory.getbasetemp()
    copy = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with store.locked(copy):
        if not (copy / "built").exists():
            build(copy)
            (copy / "built").touch()
    return copy / "_build" / "html"


def build(copy: Path) -> None:
    """Build the book in a folder."""
    copy.mkdir()
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "book", copy / "book")
    nbformat.write(charts(), copy / "book" / "notebooks" / "charts.ipynb")
    with (copy / "book" / "_toc.yml").open("a") as contents:
        contents.write("      - file: notebooks/charts\n")
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", "book/", "--all", "-W", "-n", "--keep-going"]
    # As on GitHub, where pages have more buttons; all else is the same.
    told = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "owner/name"}
    told |= {"GITHUB_REF_NAME": "main", "BOOK_URL": "https://owner.example/name"}
    done = subprocess.run(
        command, cwd=copy, env=os.environ | told, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stdout + done.stderr


def pages(site: Path) -> list[Path]:
    """The pages a reader stays on; under `_static` lie the theme's own templates."""
    found = [page for page in site.rglob("*.html") if "_static" not in page.parts]
    return [page for page in found if page != site / "index.html"]  # it only leads to the first


def test_every_page_of_the_contents_is_built_and_the_first_one_opens(site: Path) -> None:
    contents = re.findall(r"(?:root|file): (\S+)", (ROOT / "book" / "_toc.yml").read_text())
    written = {path.stem for path in (ROOT / "book").glob("*.md")}
    current = [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert [path.name for path in CHAPTERS] == current != []
    assert {f"notebooks/{path.stem}" for path in CHAPTERS} | written <= {*contents}
    for page in contents:
        assert (site / f"{page}.html").is_file()
    text = (site / "index.html").read_text(encoding="utf-8")
    assert f'http-equiv="Refresh" content="0; url={contents[0]}.html"' in text


def test_the_api_page_has_every_public_name() -> None:
    text = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:function|class):: tma\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(tma.__all__)


def test_the_runs_of_each_claim_are_counted_as_the_plan_has_them(site: Path) -> None:
    text = (site / "reproducibility.html").read_text(encoding="utf-8")
    words = re.sub(r"<[^>]+>", "", text)
    rows = re.findall(r"^(.+)\n\d+ of (\d+)\ntma study --arms (\S+)$", words, flags=re.MULTILINE)
    planned = Counter(arm.name for arm, _, _ in arms.plan())
    for _, count, names in rows:
        assert int(count) == sum(planned[name] for name in names.split(","))
    named = [name for cell, _, _ in rows for name in cell.split(", ")]
    assert sorted(named) == sorted(claims.CLAIMS)


def test_the_picture_of_tma_is_drawn_from_its_rounds() -> None:
    path = str(ROOT / "book" / "_extensions" / "book_picture.py")
    picture = runpy.run_path(path)
    assert picture["rounds"]() == [[0, 3, 4], [1, 2], [5], [6], [7]]
    assert picture["orders"]()["NFT"] == [0, 3, 4, 5, 6, 7]
    assert picture["orders"]()["FFT"] == [7, 6, 5, 0, 3, 4]
    for number, left in enumerate((range(8), [1, 2, 5, 6, 7])):
        rows = {row for _, row in picture["taken"](left)}
        assert sorted(rows) == picture["rounds"]()[number]


def test_the_forest_plot_draws_every_claim_on_its_claimed_side() -> None:
    forest = runpy.run_path(str(ROOT / "book" / "_extensions" / "book_forest.py"))
    made = [claims.untested(claim, "why") for claim in claims.CLAIMS]
    gain = (-0.2, -0.3, -0.1, 90, 3, "supported")
    made[5] = claims.Verdict("C6", "n", "m", *gain, side="negative")
    assert forest["shown"](made[5]) == (0.2, 0.1, 0.3)
    assert forest["shown"](made[0]) is None
    drawn = forest["svg"](made)
    assert drawn.count('class="interval"') == drawn.count('class="supported"') == 1
    assert drawn.count("not tested at this scale</text>") == len(made) - 1
    assert "TMA: supported" in drawn


def test_links_inside_the_site_lead_somewhere_and_nothing_is_loaded_from_outside(
    site: Path,
) -> None:
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+stylesheet[^>]+href="https?:'
    )
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        assert not loaded.search(text), page.name
        for link in re.findall(r'(?:href|src)="([^"#?]+)', text):
            if not re.match(r"[a-z]+:", link):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


@each_chapter
def test_a_chapter_shows_its_verdict_figure_and_citation(site: Path, path: Path) -> None:
    text = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    # Lines of the text may end anywhere.
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())
    found = [v for v in verdicts() if v.notebook == path.stem]
    assert bool(found) == (path.stem != "06_your_own_data")
    for verdict in found:
        assert re.search(rf"\({verdict.claim}\): {verdict.verdict}", words) or (
            not re.fullmatch(r"C\d", verdict.claim) and f": {verdict.verdict}" in words
        )
    assert "He et al." in words
    assert "{glue" not in words
    assert re.search(r'<img alt="[A-Z][^"]{39,}"', text)


@each_chapter
def test_published_notebooks_hold_the_code_of_the_current_ones(path: Path) -> None:
    # Code alone: a word in the prose may change without training anything again.
    published = [cell.source for cell in cells(path) if not is_injected(cell)]
    assert published == [cell.source for cell in cells(ROOT / "notebooks" / path.name)]


@each_chapter
def test_published_notebooks_ran_whole_and_with_published_parameters(path: Path) -> None:
    code = cells(path)
    assert all(cell.execution_count for cell in code)
    assert "error" not in {output.output_type for cell in code for output in cell.outputs}
    [injected] = filter(is_injected, code)
    scale = "study" if path.stem in claims.NOTEBOOKS.values() else "pocket"
    given = [f'scale = "{scale}"', f'output_dir = "out/published/{path.stem}"']
    assert injected.source.splitlines()[1:] == given
    text = "".join(str(output) for cell in code for output in cell.outputs)
    model = config.SCALES[scale].model
    assert tma.RunConfig.at(scale, order="tma_nft", model=model).model in text
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)
    assert not re.search(r" at 0x[0-9a-f]{6,}", text)  # an address of memory


def test_the_tables_have_a_row_for_every_claim_under_its_verdict(site: Path) -> None:
    text = (site / "claims.html").read_text(encoding="utf-8")
    groups = re.findall(
        r"<strong>([^<]+)</strong></p>\s*<div[^>]*><table.*?</table>", text, re.DOTALL
    )
    rows = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*<td.*?</tr>", text, flags=re.DOTALL)
    assert [v.claim for v in verdicts()] == list(claims.CLAIMS)
    ranked = sorted(verdicts(), key=lambda v: (claims.VERDICTS.index(v.verdict), not v.generalizes))
    assert len(rows) == len(claims.CLAIMS)
    for row, verdict in zip(rows, ranked, strict=True):
        words = html.unescape(re.sub(r"<[^>]+>", " ", row))
        assert f"notebooks/{verdict.notebook}.html" in row
        assert verdict.measure in words
        if verdict.estimate is not None:
            assert f"{verdict.estimate:+.3f}"[:4].replace("-", "−") in words
    assert groups == [*dict.fromkeys(claims.cells(v)["verdict"].capitalize() for v in ranked)]


def test_a_cell_of_the_table_is_written_as_numbers_are() -> None:
    script = runpy.run_path(str(ROOT / "book" / "_extensions" / "book_claims.py"))
    made = claims.Verdict(
        "C7", "03_granularity", "a|b", -0.0125, -0.5, 12.34, 90, 3, "supported", -0.5, -0.25, True
    )
    assert script["row"](made)[3:] == [
        "a|b",
        "−0.013 (−0.500 to +12.3); other datasets −0.500 to −0.250",
        "90 · 3",
        "–; `tma study --arms 1,1b,6`, "
        "then `papermill notebooks/04_tma.ipynb out.ipynb -p scale study`",
    ]
    lines = script["markdown"]([made])
    assert lines[1] == "**Supported, generalizes**"
    assert lines[5].count(r"a\|b") == 1
    why = claims.untested("near-duplicates", "there are none")
    assert script["row"](why)[0] == "{doc}`open </notebooks/05_order_or_selection>`"
    assert script["row"](why)[4:6] == ["–", "–"]


def test_a_chart_stands_where_its_picture_is(site: Path) -> None:
    text = (site / "notebooks" / "charts.html").read_text(encoding="utf-8")
    [(image, spec)] = re.findall(r'class="tma-chart" data-image="(\w+.svg)">(.*?)</script>', text)
    assert f'src="../_images/{image}"' in text
    assert 'alt="Two lines that fall."' in text
    assert "Two tasks." in text
    assert "a</script>" in str(json.loads(spec)["datasets"])


def test_only_pages_with_a_chart_load_the_library(site: Path) -> None:
    stored = {path.stem for path in CHAPTERS if interactive.VEGALITE in path.read_text("utf-8")}
    loading = {p.stem for p in pages(site) if "charts.js" in p.read_text(encoding="utf-8")}
    assert loading == {"charts"} | stored
    script = site / "_charts" / "charts.js"
    assert script.stat().st_size < 1_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)


@contextmanager
def opened(
    browser: Browser, site: Path, width: int, scheme: Any
) -> Iterator[tuple[Page, list[str]]]:
    """Yield a page for http://book, and what it asks for elsewhere and complains of."""

    def answer(route: Route) -> None:
        route.fulfill(path=site / urlsplit(route.request.url).path.lstrip("/"))

    wrong = list[str]()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.route("http://book/**", answer)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    own = ("http://book/", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
    yield page, wrong
    context.close()


def barriers(page: Page) -> list[str]:
    """What shuts readers out by axe-core's serious and critical rules.

    Lists of parameters and of references are apart, which Sphinx writes, and the unseen areas of
    the pointer in a chart, which Vega does.
    """
    options = {"resultTypes": ["violations"], "preload": False}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical") and rule["id"] != "definition-list"
        for node in rule["nodes"]
        if not re.search(r'class="citation-list"|_voronoi', node["html"])
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_page_opens_whole_and_alone(
    site: Path, browser: Browser, width: int, scheme: str
) -> None:
    with opened(browser, site, width, scheme) as (page, wrong):
        for path in pages(site):
            page.goto(f"http://book/{path.relative_to(site)}")
            page.evaluate(SETTLED)
            assert not wrong, path.name
            assert page.evaluate(OVERFLOW) <= 0, path.name
            assert page.evaluate("document.documentElement.dataset.theme") == scheme, path.name
            assert not barriers(page), path.name


@pytest.mark.slow
def test_a_chart_takes_the_place_of_its_picture_and_answers(site: Path, browser: Browser) -> None:
    with opened(browser, site, *VIEWS[0]) as (page, _):
        page.goto("http://book/notebooks/charts.html")
        lines = page.locator(".tma-chart-box .mark-line.role-mark path")
        expect(lines).to_have_count(4)
        expect(page.locator("figure img")).to_be_hidden()
        label = page.locator("[role=graphics-document]")
        expect(label).to_have_attribute("aria-label", re.compile("^Mean test loss over training"))
        page.locator(".vega-bind select").select_option("b")
        expect(lines).to_have_count(2)


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "book" / "publish.py"))


def test_the_readme_gives_the_published_result(script: dict[str, Any]) -> None:
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in CHAPTERS}
    answers = (ROOT / "book" / "_include" / "answers.md").read_text(encoding="utf-8")
    result = script["resolved"](answers, notebooks, verdicts())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert result in readme
    assert script["with_result"](readme, result) == readme


def test_roles_become_the_values_that_a_notebook_glued(script: dict[str, Any]) -> None:
    mark = {"scrapbook": {"name": "gap", "mime_prefix": "application/papermill.record/"}}
    data = {"application/papermill.record/text/plain": "-0.0125"}
    output = nbformat.v4.new_output("display_data", data=data, metadata=mark)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    text = "- It gains {glue:text}`notebooks/a.ipynb::gap:+.2f`;\n  {claims}`counts`.\n- So.\n"
    made = [claims.untested(claim, "why") for claim in claims.CLAIMS]
    made[0] = claims.Verdict("C1", "n", "m", 0.5, 0.4, 0.6, 90, 1, "supported")
    made[8] = replace(made[0], claim="order against selection")  # which is none of the paper's
    told = "- It gains −0.01; 1 is supported, 7 not tested at this scale.\n- So."
    assert script["resolved"](text, {"a": notebook}, made) == told
    with pytest.raises(KeyError, match=r"a\.ipynb"):
        script["resolved"](text, {}, made)


def checkout(folder: Path, *outputs: nbformat.NotebookNode) -> Path:
    """A checkout with two notebooks, the second with these outputs, and verdicts."""
    out = folder / "out" / "published"
    for name, found in (("03_a", []), ("04_tma", list(outputs))):
        (out / name).mkdir(parents=True)
        (out / name / "claims.json").write_text("[]")
        cell = nbformat.v4.new_code_cell("1", outputs=found, execution_count=1)
        cell.metadata |= {"papermill": {"start_time": "now"}, "tags": ["injected-parameters"]}
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {}, "widgets": {}})
        nbformat.write(notebook, out / f"{name}.ipynb")
    (folder / "notebooks").mkdir()
    (folder / "book" / "_include").mkdir(parents=True)
    (folder / "book" / "_include" / "answers.md").write_text("- Of eight, {claims}`counts`.\n")
    for name in ("03_a", "04_tma"):
        (folder / "notebooks" / f"{name}.ipynb").write_text("report.saved_verdicts(study)")
    (out / "04_tma" / "curves.svg").write_text("<svg/>")
    made = [claims.untested(claim, "why") for claim in claims.CLAIMS]
    claims.write(out / "claims.json", made)
    (folder / "README.md").write_text("a\n<!-- result: by -->\nold\n<!-- /result -->\nb\n")
    return folder


def test_publishing_takes_every_notebook_without_its_moment(
    script: dict[str, Any], tmp_path: Path
) -> None:
    bar = nbformat.v4.new_output("stream", name="stderr", text="50%")
    root, again = (checkout(tmp_path / name, bar) for name in ("one", "two"))
    for folder in (root, again):
        script["publish"](folder)
    book = root / "book"
    assert sorted(p.name for p in (book / "notebooks").iterdir()) == ["03_a.ipynb", "04_tma.ipynb"]
    for path in (book / "notebooks").iterdir():
        notebook = nbformat.read(path, as_version=4)
        assert "papermill" not in notebook.metadata
        assert "papermill" not in notebook.cells[0].metadata
        assert notebook.cells[0].outputs == []
        assert path.read_bytes() == (again / "book" / "notebooks" / path.name).read_bytes()
    made = root / "out" / "published" / "claims.json"
    assert (book / "claims.json").read_bytes() == made.read_bytes()
    assert (book / "images" / "04_tma.svg").read_text() == "<svg/>"
    readme = (root / "README.md").read_text()
    told = "- Of eight, 8 are not tested at this scale."
    assert readme == f"a\n<!-- result: by -->\n{told}\n<!-- /result -->\nb\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("error", "04_tma: a cell stored an error"),
        ("03_a.ipynb", r"03_a: .*03_a.ipynb is missing; run `make publish`"),
        ("03_a/claims.json", r"03_a: .*claims.json is missing; run `make publish`"),
        ("other runs", r"03_a: .*of 2 runs, abc, which .*03_a.ipynb does not"),
    ],
)
def test_what_did_not_run_as_it_stands_is_not_published(
    script: dict[str, Any], tmp_path: Path, change: str, words: str
) -> None:
    failed = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    root = checkout(tmp_path, *([failed] if change == "error" else []))
    if change == "other runs":
        other = replace(claims.untested("C5", "why"), runs="2 runs, abc")
        claims.write(root / "out" / "published" / "03_a" / "claims.json", [other])
    elif change != "error":
        (root / "out" / "published" / change).unlink()
    with pytest.raises(SystemExit, match=words):
        script["publish"](root)
    assert [path.name for path in (root / "book").iterdir()] == ["_include"]
    assert "old" in (root / "README.md").read_text()
