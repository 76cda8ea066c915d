"""What a notebook says about itself and leaves behind: description, numbers for the text, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from tma.data.load import texts
from tma.runs.config import RunConfig
from tma.runs.store import Run, hardware
from tma.store import new_file
from tma.study import effects, figures, statistics
from tma.study.claims import Verdict, made_from, table, traced, write
from tma.study.effects import Effect
from tma.study.figures import Shown
from tma.study.settings import StudyConfig
from tma.study.statistics import Interval, Runs

if TYPE_CHECKING:
    from datasets import Dataset


def _markdown(text: str) -> Shown:
    return Shown({"text/markdown": text, "text/plain": text})


def description(study: StudyConfig, config: RunConfig, train: Dataset, test: Dataset) -> Shown:
    """Return in words what is run, on which data and on what hardware."""
    words = sum(len(text.split()) for text in texts(train)) / max(1, len(train))
    return _markdown(
        f"Scale **{study.scale}** ({study.base.purpose}). Model **{config.model}**, all "
        f"parameters trained, {config.batch_size} instances a step, {study.steps} steps wanted. "
        f"Data **{config.dataset}**: {len(train):,} training and {len(test):,} test instances, "
        f"{words:.0f} words a training instance on average; {_tasks(train, test)}. Seeds (of "
        f"what is drawn and of what is shuffled): {study.seeds}. Hardware: {hardware()}."
    )


def _tasks(train: Dataset, test: Dataset) -> str:
    trained, tested = ({task for task in part["task"] if task} for part in (train, test))
    if not trained or not tested:
        return "without tasks"
    shared = len(trained & tested)
    seen = f"{shared} of them also trained on" if shared else "none of them trained on"
    return f"training tasks: {len(trained)}; test tasks: {len(tested)}, {seen}"


def runs_table(runs: Runs) -> pd.DataFrame:
    """Return what is trained, one row a label: order, runs, seeds, instances, steps, published."""
    rows = {
        label: {
            "order": own[0].config.order,
            "runs": len(own),
            "seeds": ", ".join(str(run.config.seed) for run in own),
            "instances": _range([run.manifest["instances"] for run in own]),
            "steps": _range([run.manifest["steps"] for run in own]),
            "published": sum(run.published for run in own),
        }
        for label, own in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _range(counts: Sequence[int]) -> str:
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)}))


def rounds_map(study: StudyConfig) -> Any:
    """Return the map of the first seed's pool and its rounds; a note where nothing is embedded."""
    if study.is_published:
        return _markdown("*Embeddings are not published: the map is drawn at scale `pocket`.*")
    from tma.arrange.rounds import test_centric_rounds
    from tma.study.arms import embedded_pool
    from tma.study.interactive import embedding_map

    X, Y, pool, test = embedded_pool(study.pooled("tma_nft")[0])
    rounds = test_centric_rounds(X, Y, study.limit)
    return embedding_map(X, Y, rounds, pool["task"], test["task"])


def provenance(runs: Runs) -> pd.DataFrame:
    """Return settings, fingerprints and versions of runs by name: all values where runs differ."""
    rows = []
    for run in chain.from_iterable(runs.values()):
        manifest = {"published": run.published, **run.manifest}
        manifest.pop("receipt", None)
        manifest |= manifest.pop("config")
        for group in ("inputs", "versions"):
            manifest |= {f"{group}: {name}": v for name, v in manifest.pop(group).items()}
        rows.append({name: str(value) for name, value in manifest.items()})
    names = dict.fromkeys(chain.from_iterable(rows))
    values = {name: dict.fromkeys(row[name] for row in rows if name in row) for name in names}
    return pd.DataFrame({"value": {name: " · ".join(each) for name, each in values.items()}})


def saved(study: StudyConfig, name: str, figure: Figure) -> Shown:
    """Write a figure into the output folder, as .svg and .png; return it for display."""
    for suffix, metadata in (("svg", {"Date": None}), ("png", None)):
        with (
            new_file(study.out / f"{name}.{suffix}") as draft,
            mpl.rc_context({"svg.hashsalt": "tma"}),
        ):
            figure.savefig(draft, dpi=150, metadata=metadata)
    svg = (study.out / f"{name}.svg").read_text(encoding="utf-8")
    return Shown({"image/svg+xml": svg, "text/plain": f"{name}.svg"})


def comparison(
    study: StudyConfig, name: str, runs: Runs, baseline: str, spreads: effects.Spreads
) -> Shown:
    """Return the saved figure of orders beside a baseline, or say what it lacks.

    Where seeds test different folds, their range would say how folds differ, and is left out.
    """
    if baseline not in runs:
        return _markdown(f"*Not made yet: the runs of {baseline}.*")
    spread = spreads.get("area")  # stands for that after a step
    others = {label: own for label, own in runs.items() if label != baseline}
    gaps = {label: effects.course(own, runs[baseline], spread) for label, own in others.items()}
    figure = figures.comparison_figure(runs, gaps, baseline, ranges=not study.folds)
    return saved(study, name, figure)


def seed_band(
    study: StudyConfig, runs: Sequence[Run], measure: str = "final"
) -> tuple[float, float] | None:
    """Return how far single seeds of an order lie from their mean; None where folds differ."""
    return None if study.folds else statistics.seed_range(runs, measure)


def saved_table(study: StudyConfig, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Write a table into the output folder, as .csv and, for reading, .txt; return it rounded."""
    with new_file(study.out / f"{name}.csv") as draft:
        rows.to_csv(draft)
    with new_file(study.out / f"{name}.txt") as draft:
        draft.write_text(rows.to_string(float_format="%.3f") + "\n", encoding="utf-8")
    return rows.round(3)


def saved_effects(study: StudyConfig, name: str, differences: Mapping[str, Effect]) -> pd.DataFrame:
    """Write differences into the output folder, as `saved_table`; return them for display."""
    saved_table(study, name, effects.table(differences))
    return effects.format_table(differences)


def saved_verdicts(study: StudyConfig, verdicts: Sequence[Verdict], runs: Runs) -> Shown:
    """Write verdicts, with the runs they were made from, into claims.json; return them as shown."""
    source = made_from(run.key for each in runs.values() for run in each)
    write(study.out / "claims.json", [traced(verdict, study, runs) for verdict in verdicts])
    rows = table(verdicts)
    with pd.option_context("display.max_colwidth", None):  # else long cells are cut
        # By its class a page sets the cells to the left, as words.
        html, text = rows.to_html(classes="words"), rows.to_string()
    forms = {"text/html": f"{html}\n<p>Made from {source}.</p>"}
    return Shown(forms | {"text/plain": f"{text}\nMade from {source}."})


def glue(**values: str | float | Interval | Effect | Verdict) -> None:
    """Give numbers to the book's glue role under their names, so that none is typed into its text.

    Of an interval its estimate is given, and its ends as name_low and name_high; of an effect those
    for these tasks; of a verdict its word. The record format is MyST-NB's, which need not be there.
    """
    from IPython.core import display_functions

    publish: Any = display_functions.publish_display_data
    for name, value in _plain(values).items():
        kind = "application/papermill.record/text/plain"
        mark = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
        publish({kind: repr(value)}, metadata=mark)


def _plain(values: Mapping[str, Any]) -> dict[str, str | float]:
    plain = dict[str, str | float]()
    for name, given in values.items():
        value = given.tasks if isinstance(given, Effect) else given
        if isinstance(value, Interval):
            plain |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            plain[name] = value.verdict if isinstance(value, Verdict) else value
    return plain
