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
    fold = f", fold {config.fold} of {study.folds}" if study.folds else ""
    told = (
        f"Scale **{study.scale}** ({study.base.purpose}). Model **{config.model}**, all "
        f"parameters trained, {config.batch_size} instances a step, {study.steps} steps wanted. "
        f"Data **{config.dataset}**{fold}: {len(train):,} training and {len(test):,} test "
        f"instances, {words:.0f} words a training instance on average; {_tasks(train, test)}."
    )
    if study.is_published:
        shared = (
            f"seed *s* tests fold *s* mod {study.folds}, or, without labels, the same instances"
        )
        return _markdown(f"{told} These counts are of seed {config.seed}; {shared}.")
    seeds = f"Seeds (of what is drawn and of what is shuffled): {study.seeds}."
    return _markdown(f"{told} {seeds} Hardware: {hardware()}.")


def _tasks(train: Dataset, test: Dataset) -> str:
    trained, tested = ({task for task in part["task"] if task} for part in (train, test))
    if not trained or not tested:
        return "without tasks"
    shared = len(trained & tested)
    seen = f"{shared} of them also trained on" if shared else "none of them trained on"
    return f"training tasks: {len(trained)}; test tasks: {len(tested)}, {seen}"


def runs_table(runs: Runs) -> pd.DataFrame:
    """Return what is trained, a row a label: runs, seeds, training instances and steps of a run."""
    rows = {
        named(label): {
            "runs": len(own),
            "seeds": _range([run.config.seed for run in own]),
            "training instances": _range([run.manifest["instances"] for run in own]),
            "steps": _range([run.manifest["steps"] for run in own]),
        }
        for label, own in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def tested(runs: Runs) -> Shown:
    """Return in words what all runs are tested on together."""
    every = [run for own in runs.values() for run in own]
    rows, seeds = statistics.instances(every), {run.config.seed for run in every}
    sources = (
        "" if (rows["source"] == "unknown").all() else f" from {rows['source'].nunique()} datasets"
    )
    return _markdown(
        f"Together they are tested on **{len(rows):,}** instances of {rows['task'].nunique()} tasks"
        f"{sources}, over {len(seeds)} seed{'s' * (len(seeds) > 1)}."
    )


def named(label: str) -> str:
    """Return the label of runs in words: how their order is drawn, and what else they are."""
    looks = figures.STYLES | figures.styles([label] if label.startswith("tma_rounds") else [])
    for order in (label, label.partition(", ")[0]):
        if order in looks:
            return looks[order].label + label.removeprefix(order)
    return label


def _range(counts: Sequence[int]) -> str:
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def summary_table(study: StudyConfig, runs: Runs) -> pd.DataFrame:
    """Write `statistics.summary` into the output folder; return it for display."""
    rows = saved_table(study, "summary", statistics.summary(runs))
    shown = {
        "runs": rows["seeds"],
        "training instances": [f"{count:,.0f}" for count in rows["instances"]],
        "loss before": rows["first"],
        "along the way": rows["area"],
        "at the end": rows["final"],
        "fall": [f"{share:.0f}%" for share in rows["fall_percent"]],
    }
    return pd.DataFrame(shown).set_axis([named(str(label)) for label in rows.index])


def provenance(runs: Runs) -> Shown:
    """Return settings, fingerprints and versions of runs by name, whole: all values that differ."""
    rows = []
    for run in chain.from_iterable(runs.values()):
        manifest = {n: v for n, v in run.manifest.items() if n not in {"receipt", "sums"}}
        manifest |= manifest.pop("config")
        for group in ("inputs", "versions"):
            manifest |= {f"{group}: {name}": v for name, v in manifest.pop(group).items()}
        rows.append({name: str(value) for name, value in manifest.items()})
    names = dict.fromkeys(chain.from_iterable(rows))
    values = {name: dict.fromkeys(row[name] for row in rows if name in row) for name in names}
    told = {name: " · ".join(each) for name, each in values.items()}
    return _whole(pd.DataFrame({"value": told}))


def _whole(rows: pd.DataFrame, note: str = "") -> Shown:
    """Return a table whose rows and cells are not cut; by its class a page sets cells as words."""
    with pd.option_context("display.max_colwidth", None):
        html, text = rows.to_html(classes="words"), rows.to_string()
    return Shown({"text/html": f"{html}\n<p>{note}</p>", "text/plain": f"{text}\n{note}"})


def saved(study: StudyConfig, name: str, figure: Figure, alt: str = "") -> Shown:
    """Write a figure into the output folder, as .svg and .png; return it for display."""
    for suffix, metadata in (("svg", {"Date": None}), ("png", None)):
        with (
            new_file(study.out / f"{name}.{suffix}") as draft,
            mpl.rc_context({"svg.hashsalt": "tma"}),
        ):
            figure.savefig(draft, dpi=150, metadata=metadata)
    svg = (study.out / f"{name}.svg").read_text(encoding="utf-8")
    return Shown({"image/svg+xml": svg, "text/plain": f"{name}.svg"}, alt)


def comparison(
    study: StudyConfig,
    name: str,
    runs: Runs,
    baseline: str,
    *,
    paper: Mapping[str, Mapping[float, float]] | None = None,
) -> Shown:
    """Return the saved figure of orders beside a baseline, or say what it lacks.

    Where seeds test different folds, their range would say how folds differ, and is left out.
    """
    if baseline not in runs:
        note = f"Not made yet: the runs of {named(baseline)}."
        return saved(study, name, figures.note_figure(note), note)
    others = {label: own for label, own in runs.items() if label != baseline}
    gaps = {label: effects.course(own, runs[baseline]) for label, own in others.items()}
    drawn = figures.comparison_figure(runs, gaps, baseline, ranges=not study.folds, paper=paper)
    told = (f"{named(label)}: {_told(course)}" for label, course in gaps.items())
    alt = f"Mean test loss over training steps, and its difference from {named(baseline)}, for "
    return saved(study, name, drawn, f"{alt}{'; '.join(told)}.")


def courses_table(courses: Mapping[str, Mapping[int, Effect]]) -> pd.DataFrame:
    """Return differences by step for display, with the interval for other datasets."""
    shown = {
        name: {
            f"{step:,}": statistics.format_interval(one.datasets)
            for step, one in course.items()
            if step
        }
        for name, course in courses.items()
    }
    return pd.DataFrame(shown).rename_axis(columns="after step")


def _told(course: Mapping[int, effects.Effect]) -> str:
    """Return where a difference is largest, and how it ends."""
    most, end = effects.widest(course), max(course)
    return (
        f"at most {statistics.signed(course[most].estimate)} nats a token, at step {most}, and "
        f"{statistics.signed(course[end].estimate)} at the end"
    )


def saved_intervals(
    study: StudyConfig,
    name: str,
    found: Mapping[str, Effect],
    quantity: str,
    *,
    band: tuple[float, float] | None = None,
) -> Shown:
    """Return the saved figure of differences, each with its intervals."""
    told = "; ".join(f"{label}: {effects.format_effect(one)}" for label, one in found.items())
    drawn = figures.intervals_figure(found, quantity, band)
    return saved(study, name, drawn, f"{quantity[0].upper()}{quantity[1:]}. {told}.")


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


def saved_shares(
    study: StudyConfig, name: str, found: Mapping[str, Interval], heading: str
) -> pd.DataFrame:
    """Write intervals of shares into the output folder; return them in per cent for display."""
    saved_table(study, name, statistics.table(found))
    cells = [statistics.format_share(share) for share in found.values()]
    apart = ["{:.0%} to {:.0%}".format(*share.without_one) for share in found.values()]
    columns = {f"{heading} (95% interval)": cells, "without one dataset": apart}
    return pd.DataFrame(columns, [*found])


def saved_effects(
    study: StudyConfig, name: str, differences: Mapping[str, Effect]
) -> pd.DataFrame | Shown:
    """Write differences into the output folder, as `saved_table`; return them for display."""
    if not differences:
        return _markdown("*None of these runs has been made yet.*")
    saved_table(study, name, effects.table(differences))
    return effects.format_table(differences)


def saved_verdicts(study: StudyConfig, verdicts: Sequence[Verdict], runs: Runs) -> Shown:
    """Write verdicts, with the runs they were made from, into claims.json; return them as shown."""
    source = made_from(run.key for each in runs.values() for run in each)
    write(study.out / "claims.json", [traced(verdict, study, runs) for verdict in verdicts])
    return _whole(table(verdicts), f"Made from {source}.")


def closest_to_loss(rougher: Mapping[str, Interval]) -> dict[str, str | Interval]:
    """Return what to glue of the metric that is nearest to being as steady as the loss, if any.

    `rougher` is `statistics.roughness` against the loss; glued are closest and closest_gap.
    """
    if not rougher:
        return {}
    name = min(rougher, key=lambda metric: rougher[metric].low)
    return {"closest": figures.METRICS[name], "closest_gap": rougher[name]}


def glue(**values: str | float | Interval | Effect | Verdict) -> None:
    """Give numbers to the book's glue role under their names, so that none is typed into its text.

    Of an interval its estimate is given, and its ends as name_low and name_high; of an effect those
    that are known, and as name_over for what; of a verdict its word. The record format is that of
    MyST-NB, which need not be there.
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
        value = given.known if isinstance(given, Effect) else given
        if isinstance(given, Effect):
            plain[f"{name}_over"] = given.over
        if isinstance(value, Interval):
            plain |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            plain[name] = value.verdict if isinstance(value, Verdict) else value
    return plain
