from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tma
from tests.conftest import tiny_run
from tests.stored_runs import Losses, stored
from tma import cli
from tma.arrange.receipt import arrange_dataset
from tma.errors import DataError, ParameterError
from tma.runs.store import resolve, runs
from tma.study.compare import Comparison

KEYS = (("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2"))


def compared(folder: Path, ends: Mapping[str, tuple[float, ...]]) -> Comparison:
    """Orders with known final losses of four rows, the same for both seeds."""
    found = {}
    for order, last in ends.items():
        losses: Losses = {key: (4.0, 3.0, end) for key, end in zip(KEYS, last, strict=True)}
        found[order] = [stored(folder / f"{order}{s}", order, losses, s) for s in (0, 1)]
    return Comparison(found, ())


def test_an_order_is_used_if_it_beats_its_best_shuffle(tmp_path: Path) -> None:
    ends = {"tma_nft": (1.0,) * 4, "tma_rt": (1.5,) * 4, "random": (2.0,) * 4}
    found = compared(tmp_path, ends)
    assert found.sentence == (
        "Use tma_nft: tma_nft - tma_rt is -0.500 nats a token, 95% interval -0.500 to -0.500, "
        "widened for 2 comparisons, 2 seeds, 4 rows."
    )
    names = ["tma_nft - tma_rt", "tma_nft - random", "tma_rt - random"]
    kinds = ["order", "order and selection", "selection"]
    assert found.table["of"].to_dict() == dict(zip(names, kinds, strict=True))
    assert found.table["estimate"].tolist() == [-0.5, -1.0, -0.5]
    assert found.losses["final"].to_dict() == {"tma_nft": 1.0, "tma_rt": 1.5, "random": 2.0}


def test_what_only_its_rows_gain_is_no_gain_of_an_order(tmp_path: Path) -> None:
    ends = {"tma_nft": (1.5,) * 4, "tma_rt": (1.5,) * 4, "random": (2.0,) * 4}
    assert compared(tmp_path, ends).sentence.startswith("Use tma_rt: tma_rt - random is -0.500")


def test_where_no_difference_is_shown_the_smallest_visible_one_is_told(tmp_path: Path) -> None:
    # Two tasks with differences of ±0.1: SE = √0.005 = 0.0707 on 2 degrees of freedom, where
    # t(0.975) = 4.303, t(0.9875) = 6.205 for two comparisons, and t(0.8) = 1.061.
    uneven = (1.1, 0.9, 1.1, 0.9)
    found = compared(tmp_path, {"nearest": uneven, "cluster": (2.0,) * 4, "random": (1.0,) * 4})
    assert found.sentence == (
        "No difference shown: shuffle (nearest - random is +0.000 nats a token, 95% interval "
        "-0.439 to +0.439, widened for 2 comparisons, 2 seeds, 4 rows; a difference of 0.514 would "
        "have been seen with 80% power)."
    )
    low, high, detectable = found.table.loc["nearest - random", ["low", "high", "detectable"]]
    expected = (-0.30425, 0.30425, (4.3027 + 1.0607) * math.sqrt(0.005))
    assert (low, high, detectable) == pytest.approx(expected, abs=1e-4)


def test_an_order_that_harms_is_told_and_one_seed_shows_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, {"cluster": (2.0,) * 4, "random": (1.0,) * 4})
    assert found.sentence.startswith(
        "Shuffle, even the best order is worse: cluster - random is +1.000"
    )
    found = Comparison({order: own[:1] for order, own in found.runs.items()}, ())
    assert found.sentence.startswith("No difference shown: shuffle (an interval needs two seeds")
    below, _ = found.figure().axes
    assert not below.collections  # one seed has no interval


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Two tasks of four prompts with answers, one of them twice, and a prompt without an answer."""
    rows = [
        {"task": task, "prompt": f"{what} {k}?", "response": f"{answer} {k}"}
        for task, what, answer in (("t", "Triple the number", "Thrice is"), ("s", "Spell", "So"))
        for k in range(4)
    ]
    rows += [rows[0], {"task": "t", "prompt": "Triple the number 9?"}]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def given(cache: Path, tiny_model: Path, dataset_file: Path) -> dict[str, Any]:
    """What compares two steps of the tiny model."""
    assert cache.is_dir()
    settings = {"batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "processes": 1}
    return {"train": dataset_file, "model": str(tiny_model), "seeds": 2, "steps": 2, **settings}


def test_test_rows_are_halved_and_runs_are_made_once(
    given: dict[str, Any], asked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = tma.compare(test=asked, orders="tma_nft", **given)
    note = f"{asked} is split: 5 rows to arrange for, 5 others, of the same tasks, to measure. "
    assert found.notes == (f"{note}Give evaluate to use all.",)
    assert found.notes[0] in caplog.messages
    assert [*found.runs] == ["tma_nft", "tma_rt", "random"]
    config = found.runs["tma_nft"][0].config
    halves = (config.arrange_for or "", config.test_dataset or "")
    aim, measured = (tma.load(name, answers="optional") for name in halves)
    prompts = {*aim["prompt"]}, {*measured["prompt"]}
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == 9
    tasks = dict(zip(measured["prompt"], measured["task"], strict=True))
    assert sorted(tasks.values()) == ["s", "s", "t", "t"]
    for nft, rt, other in zip(*found.runs.values(), strict=True):
        assert nft.order != rt.order
        assert sorted(nft.order) == sorted(rt.order) != sorted(other.order)
        assert {*nft.losses["id"]} == {*measured["id"]}
    made = len(runs())
    assert tma.compare(test=asked, orders="tma_nft", **given).table.equals(found.table)
    assert len(runs()) == made
    found.save(tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    assert kept["sentence"] == found.sentence
    assert kept["runs"]["random"] == [run.key for run in found.runs["random"]]
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000


def test_prompts_alone_are_arranged_for_and_others_are_measured(
    given: dict[str, Any], asked: Path, dataset_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Triple the number 7?\nHow many letters has zz?\n", encoding="utf-8")
    found = tma.compare(test=prompts, evaluate=asked, orders="tma_min", **given | {"seeds": 1})
    (run,) = found.runs["tma_min"]
    assert run.config.limit == 8
    assert run.losses["id"].nunique() == len(tma.load(asked)) == 9
    aim = tma.load(prompts, answers="optional")
    assert run.order == [*arrange_dataset(tma.load(dataset_file), aim, run.config.method).ids]
    overlapping = tma.compare(test=dataset_file, evaluate=dataset_file, orders="nearest", **given)
    assert overlapping.notes == (
        "48 of 48 measured rows have the prompt of a training row.",
        "48 of 48 measured rows have the prompt of a row to arrange for.",
    )
    with pytest.raises(
        ParameterError, match="has 0 prompts with an answer, too few for two halves"
    ):
        tma.compare(test=prompts, **given)
    with pytest.raises(DataError, match=r"prompts\.txt"):
        tma.compare(test=asked, evaluate=prompts, **given)


def test_what_is_arranged_for_names_a_run_only_where_it_decides(
    cache: Path, tiny_model: Path, dataset_file: Path, asked: Path
) -> None:
    assert cache.is_dir()

    def key(order: str, **settings: Any) -> str:
        return resolve(tiny_run(tiny_model, dataset_file, order=order, **settings)).key

    assert key("random", arrange_for=str(asked)) == key("random")
    assert key("tma_min", arrange_for=str(asked)) != key("tma_min")
    assert key("tma_min", arrange_for=str(dataset_file)) != key("tma_min", arrange_for=str(asked))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds=0 .* at least 1"),
        ({"pool": "all"}, "pool='all' .* at least 1"),
        ({"orders": ["random"]}, "orders=.* an order besides random"),
        ({"orders": ["nft"]}, "order='nft' .* tma_nft"),
        ({"train": "gone.csv"}, "train='gone.csv' cannot be used"),
        ({"evaluate": "gone.csv"}, "evaluate='gone.csv' cannot be used"),
        ({"limit": 8}, "limit=8 .* it follows from train"),
        ({"budget": "30m"}, "steps=2 and budget='30m' both"),
        ({"budget": "soon", "steps": None}, "budget='soon' .* 90s, 30m or 2h"),
        ({"steps": 13}, "13 steps of batch_size=4 need 52 training rows; a seed draws 48"),
        ({"steps": 4, "pool": 12}, "a seed draws 12 of 48"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    given: dict[str, Any], asked: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        tma.compare(test=asked, **given | changes)


def test_the_command_prints_tables_and_one_sentence(
    given: dict[str, Any], asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"compare {given['train']} --test {asked} --model {given['model']} --seeds 2"
    options = "--orders cluster,random --steps 2 --set batch_size=4 --set learning_rate=0.01"
    assert cli.main(f"{arguments} {options}".split()) == 0
    told = capsys.readouterr().out
    assert "cluster - random" in told
    assert told.splitlines()[-1].startswith(("Use cluster", "No difference shown", "Shuffle"))
