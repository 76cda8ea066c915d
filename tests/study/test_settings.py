from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import tma
from tests.conftest import circle
from tma.config import SCALES
from tma.data.load import texts
from tma.errors import ParameterError
from tma.study import arms, settings
from tma.study.settings import StudyConfig


def parameters(*, early: bool = False, least_steps: int = 1, **changes: Any) -> StudyConfig:
    """Of a notebook at scale pocket with one seed, with changes."""
    given: dict[str, Any] = dict.fromkeys(("dataset", "test_dataset", "steps"))
    given |= {"model": "llama", "scale": "pocket", "seeds": 1, "output_dir": "out"}
    return tma.study.parameters(**(given | changes), early=early, least_steps=least_steps)


def planned(**changes: Any) -> StudyConfig:
    """Of the published study, with changes."""
    return parameters(**({"scale": "study", "model": None, "seeds": None} | changes))


def test_the_scale_fills_what_is_not_given() -> None:
    assert parameters() == StudyConfig("llama", "pocket", "pocket", 1, 8, "out")
    assert [parameters(scale=s, model=None).model for s in SCALES] == ["llama", "gemma", "llama"]
    assert planned().dataset == "suite"


def test_a_test_set_of_ones_own_is_the_runs(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    study = parameters(dataset=train, test_dataset=test)
    assert study.pooled("tma_nft")[0].test_dataset == test
    with pytest.raises(ParameterError, match=r"test_dataset='nosuch\.jsonl'"):
        parameters(test_dataset="nosuch.jsonl")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "nosuch"}, "model='nosuch' .* llama, gemma, qwen, .* a hub id"),
        ({"model": 7}, "model=7 "),
        ({"model": ""}, "model='' "),
        ({"dataset": 0}, "dataset=0 "),
        ({"output_dir": None}, "output_dir=None "),
        ({"output_dir": ""}, "output_dir='' .* can be written"),
        ({"output_dir": "a\0b"}, "output_dir='a.x00b' .* can be written"),
        ({"scale": "huge"}, "scale='huge' .* pocket, study, paper"),
        ({"scale": "Pocket"}, "did you mean pocket"),
        ({"dataset": "missing.jsonl"}, "dataset='missing.jsonl' .* pocket, a hub id .* file"),
        ({"steps": -3}, "steps=-3 .* at least 1"),
        ({"steps": 2.5}, "steps=2.5 "),
        ({"steps": 1, "least_steps": 2}, "steps=1 .* at least 2"),
        ({"seeds": 0}, "seeds=0 .* a number of at least 1"),
        ({"seeds": True}, "seeds=True "),
        ({"reward_model": 7, "early": True}, "reward_model=7 "),
    ],
)
def test_a_wrong_parameter_is_named_with_value_and_choices(
    changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        parameters(**changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("modle = 'gemma'", r"parameter name='modle' .*\(did you mean model\?\)"),
        ("reward_model = 'some/model'", "parameter name='reward_model' cannot be used"),
        # Without its tag the notebook's own cell of parameters runs after papermill's.
        ("steps = 5\nmodel = 'llama'", r"steps=5 was given, .* steps=None: .* lost its tag"),
    ],
)
def test_what_papermill_injects_in_vain_is_refused(
    cell: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = ["", "from typing import Optional\nmodle = 1", f"# Parameters\n{cell}\n"]
    monkeypatch.setattr(settings, "_cells", lambda: cells)
    with pytest.raises(ParameterError, match=words):
        parameters()


def test_chapter_one_alone_has_a_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ["# Parameters\nreward_model = 'some/model'\nseeds = 1"]
    monkeypatch.setattr(settings, "_cells", lambda: cells)
    study = parameters(reward_model="some/model", early=True)
    assert study.sampled("random")[0].reward_model == "some/model"
    assert study.sampled("nearest")[0].reward_model is None


def test_an_output_folder_is_made_or_refused_with_the_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parameters(output_dir="~/out").out == tmp_path / "home" / "out"
    (tmp_path / "file").touch()
    for place in ("file", "file/out"):
        with pytest.raises(ParameterError, match=r"output_dir='.*file.*' .* can be written"):
            parameters(output_dir=str(tmp_path / place))


def test_every_seed_draws_a_sample_of_its_own() -> None:
    study = parameters(seeds=3)
    for order in ("random", "nearest", "cluster"):
        made = study.sampled(order)
        assert [config.seed for config in made] == [0, 1, 2]
        assert {(config.pool, config.limit) for config in made} == {(32, 32)}
        # Eight whole tasks of four.
        assert {(config.pool_by, config.per_task) for config in made} == {("task", (4, None))}
    pooled = study.pooled("tma_nft")
    assert [(config.pool, config.pool_by) for config in pooled] == [(920, "row")] * 3
    # Chapter 1 compares no orders.
    assert parameters(early=True).sampled("random")[0].pool_by == "row"
    large = parameters(scale="study", dataset="p3").sampled("cluster")[0]
    assert (large.pool, large.pool_by, large.per_task) == (1024, "row", (1000, None))


def test_an_order_that_no_seed_changes_is_run_once() -> None:
    paper = parameters(scale="paper", dataset="flan-mini", seeds=2)
    assert [len(paper.pooled(order)) for order in ("tma_min", "random")] == [1, 2]
    assert paper.pooled("tma_min")[0].pool is None
    assert paper.pooled("tma_min")[0].per_task == (None, 5)
    # Orders of a sample have to train on the same instances, at every scale.
    assert [config.pool for config in paper.sampled("nearest")] == [28_800] * 2
    assert paper.sampled("random")[0].per_task is None  # as Flan-mini is capped


def test_losses_are_taken_at_doubling_steps_and_answers_every_quarter_too() -> None:
    study = parameters(steps=20)
    assert study.doubling == (0, 1, 2, 4, 8, 16, 20)
    assert study.checkpoints == (0, 1, 2, 4, 5, 8, 10, 15, 16, 20)
    assert study.sampled("nearest")[0].eval_at == study.pooled("tma_nft")[0].eval_at
    assert study.sampled("nearest")[0].eval_at == study.doubling
    assert (study.sampled("nearest")[0].eval_every, study.pooled("tma_nft")[0].eval_every) == (2, 4)
    assert parameters(steps=1).checkpoints == (0, 1)


def test_chapter_one_is_longer_and_its_random_runs_answer_the_prompts() -> None:
    early = parameters(early=True)
    assert (early.steps, early.limit) == (20, 80)
    assert early.sampled("random")[0].generate_at == early.checkpoints
    assert early.sampled("nearest")[0].generate_at == ()
    assert parameters().sampled("random")[0].generate_at == ()
    assert parameters(steps=5, early=True).steps == 5
    # Where it is no longer, all share its runs.
    first, other = (parameters(scale="study", dataset="p3", early=early) for early in (True, False))
    assert first.sampled("random") == other.sampled("random")
    assert other.sampled("random")[0].generate_at == other.checkpoints


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """Five training instances on a circle and two test instances, N = 32, blocks of two rounds."""
    for name, count in (("train", 5), ("test", 2)):
        rows = [{"prompt": f"{name} {k}", "response": "r"} for k in range(count)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    angles = {f"train {k} r": angle for k, angle in enumerate([359, 11, 20, 30, 40])}
    angles |= {"test 0 r": 0, "test 1 r": 10}
    module = importlib.import_module("tma.embed")  # `tma.embed` is the function
    monkeypatch.setattr(
        module, "embed", lambda part, *_, **__: circle([angles[text] for text in texts(part)])
    )
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    return parameters(dataset=train, test_dataset=test)


def test_blocks_are_narrower_where_there_are_few_rounds(ring: StudyConfig) -> None:
    # Both test rows have a training row of their own; then both want 20°, 30° and 40° in turn.
    assert arms.blocks(ring) == (2, ["tma_rounds[0:2]", "tma_rounds[2:4]"])
    path = Path(ring.dataset)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    assert arms.blocks(ring) == (1, [f"tma_rounds[{k}:{k + 1}]" for k in range(3)])
    path.write_text("".join(lines[:2]))
    with pytest.raises(ParameterError, match=r"too few training instances.*in one round"):
        arms.blocks(ring)


def test_what_is_published_is_the_study_as_it_was_planned() -> None:
    names = [f"tma_rounds[{at}:{at + 3}]" for at in (0, 3, 6, 9)]
    assert arms.blocks(planned()) == (256, names)
    # Half of 1,024 instances takes at least so many rounds.
    assert [planned().half_rounds(tests) for tests in (240, 512, 600, 1)] == [3, 1, 1, 512]
    assert planned().is_published
    assert planned(model="llama", seeds=3).is_published
    for changed in ({"dataset": "p3"}, {"steps": 32}, {"model": "some/model"}, {"scale": "pocket"}):
        assert not planned(**changed).is_published


def test_data_without_tasks_is_told_apart() -> None:
    study = parameters()
    row = {"id": "a", "prompt": "p", "response": "r"}
    plain, named = (Dataset.from_list([row | {"task": task}] * 5) for task in (None, "t"))
    assert study.kinds(named) == ("with labels", "without labels")
    assert study.kinds(plain) == ("without labels",)
    # Orders of tasks need two of them and more instances than the 4 of one step.
    rows = [row | {"id": str(k), "task": "ab"[k % 2]} for k in range(5)]
    study.check_tasks(Dataset.from_list(rows))
    few, one = Dataset.from_list(rows[:4]), Dataset.from_list(rows[::2])
    for data, words in ((plain, "5 .*, 5 without a"), (few, "4 .* of 2 ta"), (one, "3 .* of 1 ta")):
        with pytest.raises(ParameterError, match=f"'pocket' gives {words}"):
            study.check_tasks(data)
