from __future__ import annotations

import html
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from tests import browser
from tma.runs import config
from tma.study import claims, interactive

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book" / "notebooks").glob("*.ipynb"))
VIEWS = [
    browser.View(1440, "light"),
    browser.View(1440, "dark"),
    browser.View(390, "light"),
]


def charts() -> nbformat.NotebookNode:
    """A chapter of its own with an interactive figure, to be built with the others."""
    rows = [
        (order, step, task, 3.0 - step / (4 + at))
        for at, order in enumerate(("tma_nft", "tma_rt"))
        for step in (0, 4, 8)
        for task in ("a</script>", "b")
    ]
    table = pd.DataFrame(rows, columns=["order", "step", "task", "loss"])
    stored = interactive.loss_by_task(table)._repr_mimebundle_()
    output = nbformat.v4.new_output("execute_result", data=stored, execution_count=1)
    figure = {"caption": "Two tasks.", "name": "fig-charts"}
    alt = {"figure": figure, "image": {"alt": "Two lines that fall."}}
    cell = nbformat.v4.new_code_cell(
        "figure", outputs=[output], execution_count=1, metadata={"mystnb": alt}
    )
    title = nbformat.v4.new_markdown_cell("# Charts")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    lexer = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return nbformat.v4.new_notebook(cells=[title, cell], metadata=kernel | lexer)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book and a page with a chart, built from a copy with every warning an error."""
    copy = tmp_path_factory.mktemp("book")
    shutil.copy(ROOT / "_config.yml", copy)
    shutil.copytree(ROOT / "book", copy / "book")
    nbformat.write(charts(), copy / "book" / "notebooks" / "charts.ipynb")
    with (copy / "book" / "_toc.yml").open("a") as contents:
        contents.write("  - file: notebooks/charts\n")
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", "book/", "--all", "-W", "-n"]
    done = subprocess.run(
        [*command, "--keep-going"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stdout + done.stderr
    return copy / "_build" / "html"


def shown(page: Path) -> str:
    """The words of a page."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def pages(site: Path) -> list[Path]:
    """The pages a reader stays on; under `_static` lie the theme's own templates."""
    found = [page for page in site.rglob("*.html") if "_static" not in page.parts]
    return [page for page in found if page != site / "index.html"]  # it only leads to the first


def test_every_page_of_the_contents_is_built(site: Path) -> None:
    contents = (ROOT / "book" / "_toc.yml").read_text()
    named = re.findall(r"(?:root|file): (\S+)", contents)
    assert {f"notebooks/{path.stem}" for path in CHAPTERS} <= set(named)
    sources = (ROOT / "book").glob("*.md")
    assert {path.stem for path in sources} <= set(named)
    for page in named:
        assert (site / f"{page}.html").is_file()


def test_the_address_of_the_site_leads_to_the_first_page(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    [first] = re.findall(r'http-equiv="Refresh" content="0; url=([^"]+)"', text)
    [root] = re.findall(r"root: (\S+)", (ROOT / "book" / "_toc.yml").read_text())
    assert first == f"{root}.html"


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    for page in pages(site):
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+stylesheet[^>]+href="https?:'
    )
    for page in pages(site):
        assert not loaded.search(page.read_text(encoding="utf-8")), page.name


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_shows_its_verdict_figure_and_citation(site: Path, path: Path) -> None:
    page = site / "notebooks" / f"{path.stem}.html"
    text = page.read_text(encoding="utf-8")
    words = " ".join(shown(page).split())  # lines of the text may end anywhere
    found = [v for v in claims.read(ROOT / "book" / "claims.json") if v.notebook == path.stem]
    assert found
    for verdict in found:
        assert re.search(rf"\({verdict.claim}\): {verdict.verdict}", words) or (
            not re.fullmatch(r"C\d", verdict.claim) and f": {verdict.verdict}" in words
        )
    assert "He et al." in words
    assert "{glue" not in words
    assert re.search(r'<img alt="[A-Z][^"]{39,}"', text)


def test_there_are_chapters() -> None:
    assert CHAPTERS
    current = [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert [path.name for path in CHAPTERS] == current


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_published_notebooks_hold_the_code_of_the_current_ones(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    published = [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
    current = nbformat.read(ROOT / "notebooks" / path.name, as_version=4).cells
    assert [c.source for c in published] == [c.source for c in current]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_published_notebooks_ran_whole_and_with_published_parameters(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert all(cell.execution_count for cell in code)
    [injected] = [c for c in code if "injected-parameters" in c.metadata.get("tags", [])]
    assert injected.source.splitlines()[1:] == ['model = "llama"']
    text = "".join(str(o) for c in code for o in c.outputs)
    assert config.RunConfig.at("pocket", order="tma_nft").model in text
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_figure_has_a_name_a_caption_and_alt_text(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if any("image/svg+xml" in o.get("data", {}) for o in cell.get("outputs", [])):
            told = cell.metadata["mystnb"]
            assert told["figure"]["name"].startswith("fig-")
            assert len(told["figure"]["caption"]) > 40
            assert len(told["image"]["alt"]) > 40


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_no_result_is_typed_into_the_chapters(path: Path) -> None:
    text = (ROOT / "notebooks" / f"{path.stem}.md").read_text(encoding="utf-8")
    _, heading, results = text.partition("\n## What is run here")
    assert heading
    prose = re.sub(r"```.*?```", "", results, flags=re.DOTALL)
    assert not re.findall(r"(?<![\w`-])\d+\.\d+", prose)


def verdicts() -> list[claims.Verdict]:
    return claims.read(ROOT / "book" / "claims.json")


def test_the_table_has_a_row_for_every_claim_with_its_number_and_verdict(site: Path) -> None:
    text = (site / "claims.html").read_text(encoding="utf-8")
    table = text[: text.index("</table>")]  # another one says how often intervals hold
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, flags=re.DOTALL)[1:]
    assert [v.claim for v in verdicts()] == list(claims.CLAIMS)
    assert len(rows) == len(claims.CLAIMS) == 11
    for row, verdict in zip(rows, verdicts(), strict=True):
        words = html.unescape(re.sub(r"<[^>]+>", " ", row))
        assert f"notebooks/{verdict.notebook}.html" in row
        assert verdict.verdict in words
        assert verdict.measure in words
        if verdict.estimate is not None:
            assert f"{verdict.estimate:+.3f}"[:4] in words


def test_no_stored_output_holds_an_address_of_memory() -> None:
    for path in CHAPTERS:
        assert not re.search(r" at 0x[0-9a-f]{6,}", path.read_text("utf-8")), path.name


def test_a_cell_of_the_table_is_written_as_numbers_are() -> None:
    script = runpy.run_path(str(ROOT / "book" / "_extensions" / "book_claims.py"))
    made = claims.Verdict(
        "C7", "03_granularity", "a|b", -0.0125, -0.5, 12.34, 90, 3, "supported", -0.5, -0.25, True
    )
    assert script["row"](made)[2:] == [
        "a|b",
        "-0.013 (-0.500 to +12.3); other datasets -0.500 to -0.250",
        "90 · 3",
        "**supported, generalizes**",
    ]
    assert script["markdown"]([made])[2].count(r"a\|b") == 1
    why = claims.untested("near-duplicates", "there are none")
    assert script["row"](why)[0] == "{doc}`open </notebooks/04_tma>`"
    assert script["row"](why)[3:5] == ["–", "–"]


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
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.PROGRAM is None:
        pytest.skip("there is no Chromium here")
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS, ids=lambda v: f"{v.width}-{v.scheme}")
def test_every_page_opens_whole_and_alone(
    site: Path, tab: browser.Browser, view: browser.View
) -> None:
    with browser.served(site) as address:
        for page in pages(site):
            seen = tab.open(f"{address}/{page.relative_to(site)}", view)
            foreign = [r for r in seen.requests if not r.startswith((address, "data:", "blob:"))]
            assert not foreign, page.name
            assert not seen.complaints, page.name
            assert seen.overflow <= 0, page.name
            assert seen.dark == (view.scheme == "dark"), page.name


@pytest.mark.slow
def test_a_chart_takes_the_place_of_its_picture_and_answers(
    site: Path, tab: browser.Browser
) -> None:
    with browser.served(site) as address:
        tab.open(f"{address}/notebooks/charts.html", VIEWS[0])
        lines = "document.querySelectorAll('.tma-chart-box .mark-line.role-mark path').length"
        assert tab.evaluate(lines) == 4
        assert tab.evaluate("getComputedStyle(document.querySelector('figure img')).display") == (
            "none"
        )
        label = tab.evaluate("document.querySelector('[role=graphics-document]').ariaLabel")
        assert str(label).startswith("Mean test loss over training steps")
        tab.evaluate(
            "(() => { const s = document.querySelector('.vega-bind select'); s.value = 'b';"
            " s.dispatchEvent(new Event('change', {bubbles: true}));"
            " return new Promise((done) => setTimeout(done, 500)); })()"
        )
        assert tab.evaluate(lines) == 2


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "book" / "publish.py"))


def test_the_readme_gives_the_published_result(script: dict[str, Any]) -> None:
    result = script["sentence"](verdicts())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert result in readme
    assert script["with_result"](readme, result) == readme


def test_the_result_counts_the_verdicts_and_gives_the_gain(script: dict[str, Any]) -> None:
    made = [claims.untested(claim, "why") for claim in claims.CLAIMS]
    made[0] = claims.Verdict("C1", "n", "m", 0.5, 0.4, 0.6, 90, 1, "supported")
    gain = (-0.0081, -0.0883, 0.0934, 90, 1, "inconclusive")
    made[5] = claims.Verdict("C6", "n", "final loss, NFT minus RT (nats a token)", *gain)
    assert script["sentence"](made) == (
        "*Of the paper's 8 claims: 1 supported, 1 inconclusive, 6 not tested at this scale "
        "([table](book/claims.md)). Claim C6, final loss, NFT minus RT (nats a token): -0.008 "
        "(-0.088 to +0.093), a 95 % interval over 90 test instances: inconclusive.*"
    )


def checkout(folder: Path, *outputs: nbformat.NotebookNode) -> Path:
    """A checkout with two notebooks, the second with these outputs, and verdicts."""
    for name in ("out/03_a", "out/04_tma", "notebooks", "book"):
        (folder / name).mkdir(parents=True)
    for name in ("03_a", "04_tma"):
        (folder / "out" / name / "claims.json").write_text("[]")
    for name, found in (("03_a", []), ("04_tma", list(outputs))):
        cell = nbformat.v4.new_code_cell("1", outputs=found, execution_count=1)
        cell.metadata |= {"papermill": {"start_time": "now"}, "tags": ["injected-parameters"]}
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {}})
        nbformat.write(notebook, folder / "out" / f"{name}.ipynb")
        (folder / "notebooks" / f"{name}.ipynb").touch()
    (folder / "out" / "04_tma" / "curves.svg").write_text("<svg/>")
    made = [claims.untested(claim, "why") for claim in claims.CLAIMS]
    claims.write(folder / "out" / "claims.json", made)
    (folder / "README.md").write_text("a\n<!-- result: by -->\nold\n<!-- /result -->\nb\n")
    return folder


def test_publishing_takes_every_notebook_without_its_moment(
    script: dict[str, Any], tmp_path: Path
) -> None:
    bar = nbformat.v4.new_output("stream", name="stderr", text="50 %")
    root = checkout(tmp_path, bar)
    script["publish"](root)
    book = root / "book"
    assert sorted(p.name for p in (book / "notebooks").iterdir()) == ["03_a.ipynb", "04_tma.ipynb"]
    for path in (book / "notebooks").iterdir():
        notebook = nbformat.read(path, as_version=4)
        assert "papermill" not in notebook.metadata
        assert "papermill" not in notebook.cells[0].metadata
        assert notebook.cells[0].outputs == []
    assert (book / "claims.json").read_bytes() == (root / "out" / "claims.json").read_bytes()
    assert (book / "images" / "04_tma.svg").read_text() == "<svg/>"
    readme = (root / "README.md").read_text()
    assert "8 not tested at this scale" in readme
    assert "old" not in readme
    assert readme.startswith("a\n<!-- result: by -->\n*Of")


def test_the_same_runs_are_published_as_the_same_files(
    script: dict[str, Any], tmp_path: Path
) -> None:
    roots = [checkout(tmp_path / name) for name in ("one", "two")]
    for root in roots:
        script["publish"](root)
    published = [(root / "book" / "notebooks" / "04_tma.ipynb").read_bytes() for root in roots]
    assert published[0] == published[1]


def test_a_notebook_with_a_stored_error_is_not_published(
    script: dict[str, Any], tmp_path: Path
) -> None:
    failed = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    root = checkout(tmp_path, failed)
    with pytest.raises(SystemExit, match="04_tma: a cell stored an error"):
        script["publish"](root)
    assert not list((root / "book").iterdir())
    assert "old" in (root / "README.md").read_text()


def test_results_of_other_runs_are_not_published(script: dict[str, Any], tmp_path: Path) -> None:
    root = checkout(tmp_path)
    verdicts = root / "out" / "03_a" / "claims.json"
    verdicts.rename(root / "kept")
    with pytest.raises(SystemExit, match=r"03_a: .*claims.json is missing"):
        script["publish"](root)
    (root / "kept").rename(verdicts)
    claims.write(verdicts, [replace(claims.untested("C5", "why"), runs="2 runs, abc")])
    with pytest.raises(SystemExit, match=r"03_a: .*of 2 runs, abc, which .*03_a.ipynb does not"):
        script["publish"](root)
    assert not list((root / "book").iterdir())


def test_a_notebook_that_did_not_run_is_not_published(
    script: dict[str, Any], tmp_path: Path
) -> None:
    root = checkout(tmp_path)
    (root / "out" / "03_a.ipynb").unlink()
    with pytest.raises(SystemExit, match=r"03_a: out/03_a\.ipynb is missing; run `make notebooks`"):
        script["publish"](root)
