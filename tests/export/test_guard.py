"""The guard beside the real trainers, with a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import tma
from tests.export.conftest import ROWS, lines, of
from tma.errors import DataError, OrderError, ParameterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Make = Callable[..., "Trainer"]
IDS = [row["tma_id"] for row in ROWS]


def arguments(folder: Path, **given: Any) -> dict[str, Any]:
    """What all trainings here have in common, and the order kept unless `given` says otherwise."""
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    kept = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 4}
    known = {"num_train_epochs": 1, "learning_rate": 1e-3, "dataloader_pin_memory": False}
    return {"output_dir": str(folder / "out"), **quiet, **kept, **known, **given}


@pytest.fixture
def sft(
    model: Callable[[], PreTrainedModel], words: PreTrainedTokenizerFast, tmp_path: Path
) -> Make:
    trl = pytest.importorskip("trl", reason="needs trl: pip install 'tma[export]'")

    def make(rows: list[dict[str, Any]] = ROWS, **given: Any) -> Trainer:
        given = {"bf16": False, "max_length": 16} | given
        args = trl.SFTConfig(**arguments(tmp_path, **given))
        data = Dataset.from_list(rows)
        return trl.SFTTrainer(model(), args, train_dataset=data, processing_class=words)

    return make


@pytest.fixture
def plain(
    model: Callable[[], PreTrainedModel], words: PreTrainedTokenizerFast, tmp_path: Path
) -> Make:
    def make(rows: list[dict[str, Any]] = ROWS, **given: Any) -> Trainer:
        texts = [row["prompt"] + row["completion"] for row in rows]
        data = [{"tma_id": r["tma_id"], **words(t)} for r, t in zip(rows, texts, strict=True)]
        return Trainer(
            model(),
            TrainingArguments(**arguments(tmp_path, **given)),
            train_dataset=Dataset.from_list(data) if given.get("seed") is None else data,
            processing_class=words,
            data_collator=DataCollatorForLanguageModeling(words, mlm=False),
        )

    return make


@pytest.fixture(params=["sft", "plain"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.getfixturevalue(request.param)
    return made


def trained(trainer: Trainer, receipt: Path, **given: Any) -> Path:
    """Train under a guard; return the file of what was consumed."""
    consumed = receipt.with_name("consumed.jsonl")
    tma.OrderGuard(receipt, consumed).watch(trainer)
    trainer.train(**given)
    return consumed


def test_a_sequential_pass_is_recorded_to_the_last_incomplete_batch(
    make: Make, receipt: Path
) -> None:
    consumed = trained(make(), receipt)
    assert [line["id"] for line in lines(consumed)] == IDS
    assert [line["step"] for line in lines(consumed)] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert lines(consumed)[4]["text"].startswith("say w n4 w")
    assert tma.verify(receipt, consumed) == 10


def test_epochs_accumulation_workers_and_evaluation(make: Make, receipt: Path) -> None:
    loading = {"dataloader_num_workers": 2, "per_device_train_batch_size": 3}
    trainer = make(num_train_epochs=2, gradient_accumulation_steps=3, seed=1, **loading)
    trainer.add_callback(Evaluating(trainer))
    consumed = trained(trainer, receipt)
    assert tma.verify(receipt, consumed, epochs=2) == 20
    steps = [line["step"] for line in lines(consumed)]
    assert steps == [1] * 9 + [2] + [3] * 9 + [4]
    with pytest.raises(OrderError, match=r"epoch 1: expected the end, got id0 \('say n0 w"):
        tma.verify(receipt, consumed)


class Evaluating(TrainerCallback):
    """Evaluates on other rows after every step: they are not consumed."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.rows = trainer, trainer.train_dataset

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert "eval_loss" in self.trainer.evaluate(self.rows)


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy='random'"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy='group_by"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=True .*2 of 10 rows would be"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_first_step(
    make: Make, receipt: Path, given: dict[str, Any], setting: str
) -> None:
    with pytest.raises(ParameterError, match=setting):
        trained(make(**given), receipt)
    assert not receipt.with_name("consumed.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"shuffle_dataset": False, "train_sampling_strategy": "random"}, "train_sampling_str"),
        ({"shuffle_dataset": True}, "shuffle_dataset=True"),
        ({"packing": True, "packing_strategy": "bfd"}, "packing=True"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing=True"),
    ],
)
def test_what_trl_can_be_set_to_is_refused(
    sft: Make, receipt: Path, given: dict[str, Any], setting: str
) -> None:
    with pytest.raises(ParameterError, match=f"{setting}.* cannot be used"):
        trained(sft(**given), receipt)


def test_rows_read_as_a_stream_are_refused(sft: Make, receipt: Path) -> None:
    trainer = sft(max_steps=2)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    with pytest.raises(ParameterError, match="train_dataset='IterableDataset'"):
        trained(trainer, receipt)


def test_a_row_that_trl_filters_is_named(sft: Make, tmp_path: Path) -> None:
    long = {"tma_id": "long", "prompt": "say " * 16, "completion": "n1"}
    rows = [*ROWS[:3], long, *ROWS[3:]]
    of(rows).save(tmp_path / "receipt.json")
    told = r"dropped 1 of 11 rows.*: long \(the first at position 4\).*max_length=16"
    with pytest.raises(OrderError, match=told):
        trained(sft(rows), tmp_path / "receipt.json")
    trained(sft(rows, max_length=None), tmp_path / "receipt.json")


def test_rows_in_another_sequence_or_without_ids_are_refused(make: Make, receipt: Path) -> None:
    with pytest.raises(OrderError, match="position 1 of epoch 1: expected id0, got id9"):
        trained(make(ROWS[::-1]), receipt)
    trainer = make()
    trainer.train_dataset = trainer.train_dataset.remove_columns("tma_id")
    with pytest.raises(ParameterError, match="expected rows with the column tma_id"):
        trained(trainer, receipt)


def test_a_sampler_that_no_setting_tells_of_is_stopped_at_the_first_departure(
    make: Make, receipt: Path
) -> None:
    from torch.utils.data import SequentialSampler

    class Swapping(SequentialSampler):
        def __iter__(self) -> Any:
            rows = list(super().__iter__())
            rows[5], rows[6] = rows[6], rows[5]
            return iter(rows)

    trainer: Any = make()
    trainer._get_train_sampler = Swapping
    with pytest.raises(OrderError, match=r"position 6 .* id5 \('say w w n5.*got id6 \('say n6"):
        trained(trainer, receipt)
    assert trainer.state.global_step == 1
    consumed = receipt.with_name("consumed.jsonl")
    assert [line["id"] for line in lines(consumed)] == [*IDS[:5], "id6"]
    with pytest.raises(OrderError, match=r"position 6 of epoch 1: expected id5, got id6 \('say"):
        tma.verify(receipt, consumed)


def test_equal_rows_count_as_one_another(make: Make, tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1], ROWS[0] | {"tma_id": "again"}]
    of(rows).save(tmp_path / "receipt.json")
    consumed = trained(make(rows), tmp_path / "receipt.json")
    assert [line["id"] for line in lines(consumed)] == ["id0", "id1", "again"]


def test_a_resumed_training_goes_on_in_the_same_file(make: Make, receipt: Path) -> None:
    given = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}
    given |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    consumed = trained(make(**given), receipt)
    whole = consumed.read_text("utf-8")
    out = receipt.with_name("out")
    torn, exact = whole[:-20], "".join(whole.splitlines(keepends=True)[:20])
    # Within an epoch, killed while it wrote; and behind the last row of the second.
    for state, left in (("checkpoint-4", torn), ("checkpoint-6", exact)):
        consumed.write_text(left, "utf-8")
        trained(make(**given), receipt, resume_from_checkpoint=str(out / state))
        assert consumed.read_text("utf-8") == whole
        assert tma.verify(receipt, consumed, epochs=3) == 30
        with pytest.raises(ParameterError, match="ignore_data_skip=True"):
            skipping = make(**given, ignore_data_skip=True)
            trained(skipping, receipt, resume_from_checkpoint=str(out / state))
    other = {
        **given,
        "gradient_accumulation_steps": 1,
    }  # five steps an epoch: the ninth row is next
    with pytest.raises(OrderError, match=r"position 5 of epoch 2: expected id4 .* got id8"):
        trained(make(**other), receipt, resume_from_checkpoint=str(out / "checkpoint-4"))
    consumed.write_text("", "utf-8")
    with pytest.raises(OrderError, match=r"after step 4, but .* ends with step 0"):
        trained(make(**given), receipt, resume_from_checkpoint=str(out / "checkpoint-4"))


def test_training_that_stops_early_leaves_a_prefix(make: Make, receipt: Path) -> None:
    consumed = trained(make(max_steps=2), receipt)
    assert tma.verify(receipt, consumed, prefix=True) == 8
    with pytest.raises(OrderError, match="position 9 of epoch 1: expected id8, got the end"):
        tma.verify(receipt, consumed)


def test_an_epoch_that_ends_early_is_a_departure(make: Make, receipt: Path) -> None:
    class Stopping(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_epoch_stop = state.global_step == 2

    trainer = make(num_train_epochs=2)
    trainer.add_callback(Stopping())
    with pytest.raises(OrderError, match=r"position 9 of epoch 1: expected id8 .* got the end"):
        trained(trainer, receipt)


@pytest.mark.parametrize("damage", ['{"step": 1}\n', '{"id": 3}\n', "no json\n", "[]\n"])
def test_a_damaged_line_is_named(receipt: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "consumed.jsonl"
    file.write_text('{"id": "id0"}\n\n' + damage, "utf-8")
    with pytest.raises(DataError, match=r"consumed\.jsonl, line 3 is no JSON object"):
        tma.verify(receipt, file)
    with pytest.raises(DataError, match="cannot be read"):
        tma.verify(receipt, tmp_path / "missing.jsonl")
