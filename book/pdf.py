"""Print the book, built as one page, as a PDF: `python book/pdf.py PAGE PDF`, with Chromium."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = ["--disable-gpu", "--disable-quic"]
"""Besides playwright's own."""
# Formulas are set and pictures read after the page has loaded.
SETTLED = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  await document.fonts.ready;
}"""
WIDTH = 665
"""Pixels between the margins of an upright page: 176 mm."""
TURN_WIDE_TABLES = """() => {
  const room = document.querySelector("article").getBoundingClientRect().right;
  for (const table of document.querySelectorAll("article table"))
    if (Math.floor(table.getBoundingClientRect().right) > room) table.classList.add("turned");
}"""


def browser() -> str:
    """Return the path of a Chromium or Chrome."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(
            f"no browser: expected one of {', '.join(BROWSERS)} on PATH to print the book. "
            "Install Chromium, for example `apt-get install chromium`."
        )
    return found


def print_page(page: Path, target: Path) -> None:
    """Print a page of the disk with its own settings for paper, and its headings as bookmarks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".draft")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser(), args=SWITCHES)
        view = opened.new_page(color_scheme="light", viewport={"width": WIDTH, "height": 1000})
        view.emulate_media(media="print")
        view.set_default_timeout(600_000)
        view.goto(page.resolve().as_uri())
        view.evaluate(SETTLED)
        view.evaluate(TURN_WIDE_TABLES)
        view.pdf(
            path=draft, prefer_css_page_size=True, print_background=True, tagged=True, outline=True
        )
        opened.close()
    draft.replace(target)


if __name__ == "__main__":
    print_page(Path(sys.argv[1]), Path(sys.argv[2]))
