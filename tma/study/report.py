"""What a notebook says about itself and leaves behind: description, numbers for the text, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd

from tma.config import SCALES
from tma.data.load import texts
from tma.runs.config import RunConfig
from tma.runs.store import Run, hardware
from tma.store import new_file
from tma.study import effects
from tma.study.claims import Verdict, made_from, table, write
from tma.study.effects import Effect
from tma.study.intervals import Interval
from tma.study.settings import StudyConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure


Glued = str | float | Interval | Effect | Verdict


def description(study: StudyConfig, config: RunConfig, train: Dataset, test: Dataset) -> Any:
    """Return in words what is run, on which data and on what hardware; Markdown, for display."""
    words = sum(len(text.split()) for text in texts(train)) / max(1, len(train))
    return _markdown(
        f"Scale **{study.scale}** ({SCALES[study.scale].purpose}). Model **{config.model}**, all "
        f"parameters trained, {config.batch_size} instances a step, {study.steps} steps wanted. "
        f"Data **{config.dataset}**: {len(train):,} training and {len(test):,} test instances, "
        f"{words:.0f} words a training instance on average; {_tasks(train, test)}. Seeds (of "
        f"what is drawn and of what is shuffled): {study.seeds}. Hardware: {hardware()}."
    )


def _markdown(text: str) -> Any:
    from IPython import display

    shown: Any = display.Markdown  # it has no types
    return shown(text)


def _tasks(train: Dataset, test: Dataset) -> str:
    trained, tested = ({task for task in part["task"] if task} for part in (train, test))
    if not trained or not tested:
        return "without tasks"
    shared = len(trained & tested)
    seen = f"{shared} of them also trained on" if shared else "none of them trained on"
    return f"training tasks: {len(trained)}; test tasks: {len(tested)}, {seen}"


def runs_table(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return what is compared, one row an order: runs, seeds, instances, steps, published."""
    rows = {
        label: {
            "runs": len(made),
            "seeds": ", ".join(str(run.config.seed) for run in made),
            "instances": " to ".join(_ends([run.manifest["instances"] for run in made])),
            "steps": " to ".join(_ends([run.manifest["steps"] for run in made])),
            "published": sum(run.published for run in made),
        }
        for label, made in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _ends(counts: Sequence[int]) -> list[str]:
    return [str(count) for count in sorted({min(counts), max(counts)})]


def rounds_map(study: StudyConfig) -> Any:
    """Return the map of the first seed's pool and its rounds, for display.

    Of the published study, of which nothing is embedded to read it, a note in its place.
    """
    if study.is_published:
        return _markdown("*Embeddings are not published: the map is drawn at scale `pocket`.*")
    from tma.arrange.orders import drawn
    from tma.arrange.rounds import test_centric_rounds
    from tma.data.load import load_both
    from tma.embed import embed
    from tma.study.interactive import embedding_map

    config = study.pooled("tma_nft")[0]
    train, test = load_both(config)
    pool = train.select(sorted(drawn(len(train), config.pool or len(train), config.seed)))
    X, Y = embed(pool), embed(test)
    rounds = test_centric_rounds(X, Y, study.limit)
    return embedding_map(X, Y, rounds, pool["task"], test["task"])


def provenance(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return settings, fingerprints and versions of runs by order, as rows of name and value.

    Where the runs differ, all their values are given.
    """
    found: dict[str, list[str]] = {}
    for run in chain.from_iterable(runs.values()):
        manifest = {"published": run.published, **run.manifest}
        manifest.pop("receipt", None)
        for group in ("config", "inputs", "versions"):
            named = manifest.pop(group).items()
            manifest |= {n if group == "config" else f"{group}: {n}": v for n, v in named}
        for name, value in manifest.items():
            found.setdefault(name, []).append(str(value))
    values = {name: " · ".join(dict.fromkeys(each)) for name, each in found.items()}
    return pd.DataFrame({"value": values})


@dataclass(frozen=True)
class Drawn:
    """A figure for display, as the file holds it: the same bytes for the same result."""

    svg: str
    """The figure."""
    name: str
    """Of its file."""

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return self.name


def saved(study: StudyConfig, name: str, figure: Figure) -> Drawn:
    """Write a figure into the output folder, as .svg and .png; return it for display."""
    import matplotlib as mpl

    for suffix in ("svg", "png"):
        # A fixed date and id seed keep equal results equal byte for byte.
        fixed = {"Date": None} if suffix == "svg" else None
        with (
            new_file(study.out / f"{name}.{suffix}") as draft,
            mpl.rc_context({"svg.hashsalt": "tma"}),
        ):
            figure.savefig(draft, dpi=150, metadata=fixed)
    return Drawn((study.out / f"{name}.svg").read_text(encoding="utf-8"), f"{name}.svg")


def comparison(
    study: StudyConfig,
    name: str,
    runs: Mapping[str, Sequence[Run]],
    baseline: str,
    spreads: Mapping[str, effects.Spread],
) -> Any:
    """Return the saved figure of orders beside a baseline, or what it lacks, for display.

    Args:
        study: parameters of the notebook.
        name: of its file.
        runs: order → runs, in the sequence in which they are drawn.
        baseline: one of the orders.
        spreads: from `arms.spreads`.
    """
    from tma.study import figures, statistics

    if baseline not in runs:
        return _markdown(f"*Not made yet: the runs of {baseline}.*")
    gaps = effects.courses(runs, baseline, spreads)
    return saved(study, name, figures.comparison_figure(statistics.curves(runs), gaps, baseline))


def saved_table(study: StudyConfig, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Write a table into the output folder, as .csv and, for reading, .txt; return it rounded."""
    with new_file(study.out / f"{name}.csv") as draft:
        rows.to_csv(draft)
    with new_file(study.out / f"{name}.txt") as draft:
        draft.write_text(rows.to_string(float_format="%.3f") + "\n", encoding="utf-8")
    return rows.round(3)


def saved_effects(study: StudyConfig, name: str, found: Mapping[str, Effect]) -> pd.DataFrame:
    """Write differences into the output folder, as `saved_table`; return them for display."""
    saved_table(study, name, effects.table(found))
    return effects.shown(found)


@dataclass(frozen=True)
class Shown:
    """Rows for display, none of them cut: as HTML where that can be shown, else as text."""

    html: str
    """The rows as a table."""
    text: str
    """The same in columns."""

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def saved_verdicts(
    study: StudyConfig, verdicts: Sequence[Verdict], runs: Mapping[str, Sequence[Run]]
) -> Shown:
    """Write a chapter's verdicts into the output folder's claims.json; return them for display.

    Both name the runs that they were made from, so that one is not taken for that of another run.
    """
    made = made_from(run.key for each in runs.values() for run in each)
    write(study.out / "claims.json", [replace(verdict, runs=made) for verdict in verdicts])
    rows = table(verdicts)
    with pd.option_context("display.max_colwidth", None):  # else long cells are cut
        # The class tells words from figures, which a page sets to the right.
        html, text = rows.to_html(classes="words"), rows.to_string()
    return Shown(f"{html}\n<p>Made from {made}.</p>", f"{text}\nMade from {made}.")


def glue(**values: Glued) -> None:
    """Give numbers to the book under their names, so that none is typed into its text.

    The book's text shows them with the glue role of MyST-NB, whose record format this is; nothing
    of the book's tools is needed to run a notebook.

    Args:
        values: name → number or text; of an interval its estimate, and its ends as name_low and
            name_high; of an effect those for these tasks; of a verdict its word.
    """
    from IPython.core import display_functions

    publish: Any = display_functions.publish_display_data
    for name, value in _plain(values).items():
        kind = "application/papermill.record/text/plain"
        mark = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
        publish({kind: repr(value)}, metadata=mark)


def _plain(values: Mapping[str, Glued]) -> dict[str, str | float]:
    found = dict[str, str | float]()
    for name, given in values.items():
        value = given.tasks if isinstance(given, Effect) else given
        if isinstance(value, Interval):
            found |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            found[name] = value.verdict if isinstance(value, Verdict) else value
    return found
