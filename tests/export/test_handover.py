"""Orders written for other trainers: rows, settings, and what would be lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from datasets import Dataset

import tma
from tests.export.conftest import ROWS, lines, of
from tma.errors import DataError, OrderError, ParameterError
from tma.export.handover import Change

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CHAT = {
    "tma_id": "chat",
    "messages": [
        {"role": "system", "content": "w"},
        {"role": "user", "content": "say"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "n1"},
        {"role": "tool", "content": "n2"},
        {"role": "assistant", "content": "n3", "weight": 1},
    ],
    "tools": TOOLS,
}
SHAREGPT = {
    "tma_id": "gpt",
    "system": "w",
    "conversations": [{"from": "human", "value": "say"}, {"from": "gpt", "value": "n4"}],
}
ALPACA = {"tma_id": "alpaca", "instruction": "say", "input": "w", "output": "n5"}
MIXED = [ALPACA, CHAT, SHAREGPT]
WHAT = ("dropped", "truncated")


def exported(
    rows: list[dict[str, Any]], trainer: str, folder: Path, **given: Any
) -> tuple[list[dict[str, Any]], Any]:
    """The rows that are written, and what `export` returns."""
    made = tma.export(of(rows), rows, trainer, folder, **given)
    assert tma.read_receipt(folder / "receipt.json") == of(rows)
    assert {*made.files} == {file.name for file in folder.iterdir()}
    return lines(folder / "train.jsonl"), made


@pytest.mark.parametrize("trainer", ["trl", "axolotl", "ms-swift"])
def test_chats_keep_all_turns_and_tools(trainer: str, tmp_path: Path) -> None:
    rows, _ = exported(MIXED, trainer, tmp_path)
    turn = [{"role": "user", "content": "say\n\nw"}, {"role": "assistant", "content": "n5"}]
    assert rows[0] == {"tma_id": "alpaca", "messages": turn}
    assert rows[1] == CHAT
    assert rows[2]["messages"] == [
        {"role": "system", "content": "w"},
        {"role": "user", "content": "say"},
        {"role": "assistant", "content": "n4"},
    ]


@pytest.mark.parametrize("trainer", ["llama-factory", "dataflex"])
def test_llama_factory_gets_chats_with_its_own_roles(trainer: str, tmp_path: Path) -> None:
    rows, made = exported(MIXED, trainer, tmp_path, batch_size=3)
    chat = rows[1]
    assert (chat["system"], json.loads(chat["tools"])) == ("w", TOOLS)
    assert [turn["role"] for turn in chat["conversations"]] == [
        *("user", "function_call", "observation", "assistant")
    ]
    assert json.loads(chat["conversations"][1]["content"]) == [{"name": "f", "arguments": {"x": 1}}]
    assert chat["conversations"][2]["content"] == "n1\n</tool_response>\n<tool_response>\nn2"
    info = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))["tma"]
    assert (info["file_name"], info["formatting"]) == ("train.jsonl", "sharegpt")
    assert info["tags"]["function_tag"] == "function_call"
    assert made.changed == ()
    if trainer == "dataflex":
        assert [row["score"] for row in rows] == [0, 1, 2]


def test_rows_without_chats_are_pairs(tmp_path: Path) -> None:
    other = {"tma_id": "b", "prompt": "say", "response": "n1"}
    rows, _ = exported([ALPACA, ROWS[0], other], "trl", tmp_path / "trl")
    assert [(row["prompt"], row["completion"]) for row in rows] == [
        *(("say\n\nw\n", "n5"), ("say ", "n0 w"), ("say\n", "n1"))
    ]
    rows, _ = exported([ALPACA, other], "llama-factory", tmp_path / "lf")
    assert rows[0] == ALPACA
    assert rows[1] == {"tma_id": "b", "instruction": "say", "input": "", "output": "n1"}


def test_the_rows_of_a_loaded_dataset_are_put_in_order(tmp_path: Path) -> None:
    for kept in (lambda row: row, json.dumps):  # a struct, or the text of the file
        made = [
            {"id": name, "prompt": "say", "response": "n4", "place": f"line {k}", "row": kept(row)}
            for k, (name, row) in enumerate([("gpt", SHAREGPT), ("other", SHAREGPT)], start=1)
        ]
        found = tma.export(
            of([SHAREGPT]), Dataset.from_list(made), "trl", tmp_path, max_length=9, tokenizer=None
        )
        assert [row["tma_id"] for row in lines(found.folder / "train.jsonl")] == ["gpt"]
        assert len(lines(found.folder / "train.jsonl")[0]["messages"]) == 3
    # An instance of each exchange: the chat is not written as often as it has exchanges.
    twice = Dataset.from_list([row | {"place": "line 1"} for row in made])
    receipt = of([{"tma_id": "other"}, {"tma_id": "gpt"}])
    found = tma.export(receipt, twice, "trl", tmp_path)
    pair = {"tma_id": "gpt", "prompt": "say\n", "completion": "n4"}
    assert lines(found.folder / "train.jsonl")[1] == pair
    with pytest.raises(DataError, match="none with the id third"):
        tma.export(of([{"tma_id": "third"}]), twice, "trl", tmp_path)


def test_a_saved_file_is_read_and_held_against_the_receipt(tmp_path: Path) -> None:
    of(ROWS).save(tmp_path / "order.json")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    found = tma.export(tmp_path / "order.json", file, "trl", tmp_path / "out")
    assert lines(found.folder / "train.jsonl") == ROWS
    with pytest.raises(OrderError, match="position 1 of epoch 1: expected id0, got id9"):
        tma.export(tmp_path / "order.json", ROWS[::-1], "trl", tmp_path / "out")
    file.write_text("[]", "utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1 is no JSON object with a text under"):
        tma.export(tmp_path / "order.json", file, "trl", tmp_path / "out")
    with pytest.raises(DataError, match="row 1 has no tma_id"):
        tma.export(tmp_path / "order.json", [{"prompt": "a"}], "trl", tmp_path / "out")
    with pytest.raises(DataError, match=r"x, place 1 of the order: no prompt and response in .* a"):
        exported([{"tma_id": "x", "a": "b"}], "trl", tmp_path / "out")


@pytest.mark.parametrize("trainer", ["verl", "open-instruct", "torchtune", "ms-swift-megatron"])
def test_trainers_that_cannot_keep_an_order_are_refused(trainer: str, tmp_path: Path) -> None:
    assert {*tma.export.UNSAFE} >= {trainer}
    with pytest.raises(ParameterError, match=f"trainer='{trainer}' cannot be used; expected one"):
        tma.export(of(ROWS), ROWS, trainer, tmp_path)
    with pytest.raises(ParameterError, match="did you mean axolotl"):
        tma.export(of(ROWS), ROWS, "axolotls", tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("trainer", "file", "kept"),
    [
        ("trl", "trl.yaml", {"train_sampling_strategy": "sequential", "packing": False}),
        ("llama-factory", "llama_factory.yaml", {"disable_shuffling": True, "val_size": 0}),
        ("axolotl", "axolotl.yaml", {"curriculum_sampling": True, "sample_packing": False}),
        ("ms-swift", "ms_swift.yaml", {"train_dataloader_shuffle": False, "strict": True}),
        ("dataflex", "dataflex.yaml", {"component_name": "sorting", "update_step": 5}),
    ],
)
def test_each_flag_that_matters_is_set(
    trainer: str, file: str, kept: dict[str, Any], tmp_path: Path
) -> None:
    _, made = exported(ROWS, trainer, tmp_path, max_length=99, batch_size=2)
    text = (tmp_path / file).read_text("utf-8")
    assert "Keeps an order of 10 rows; checked against " in text
    settings = yaml.safe_load(text)
    assert kept.items() <= settings.items()
    length = {"axolotl": "sequence_len", "trl": "max_length", "ms-swift": "max_length"}
    assert settings[length.get(trainer, "cutoff_len")] == 99
    assert made.changed == ()
    if trainer == "dataflex":
        components = yaml.safe_load((tmp_path / "components.yaml").read_text("utf-8"))
        assert components["reorders"]["sorting"]["params"]["score_params"] == {
            "score_field": "score"
        }


@pytest.mark.parametrize(
    ("trainer", "batches", "changed"),
    [
        ("trl", (4, 1), {}),
        ("trl", (2, 2), {"id0": "repeated", "id1": "repeated"}),
        ("axolotl", (3, 4), {"id0": "repeated", "id1": "repeated"}),
        ("ms-swift", (3, 4), {"id8": "dropped", "id9": "dropped"}),
        ("ms-swift", (4, 1), {}),
        ("dataflex", (4, 1), {"id0": "repeated", "id1": "repeated"}),
    ],
)
def test_rows_that_batches_repeat_or_leave_over_are_named(
    trainer: str,
    batches: tuple[int, int],
    changed: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    size, processes = batches
    with caplog.at_level(logging.WARNING, "tma.export"):
        _, made = exported(ROWS, trainer, tmp_path, batch_size=size, processes=processes)
    assert {one.id: one.what for one in made.changed} == changed
    assert [row["id"] for row in lines(tmp_path / "changed.jsonl")] == [*changed]
    for first, what in [*changed.items()][:1]:
        told = f"2 of 10 rows would be {what} by {trainer}, the first {first}"
        assert told in caplog.text


def test_llama_factory_drops_turns_that_do_not_alternate(tmp_path: Path) -> None:
    turns = SHAREGPT["conversations"]
    odd = [
        {"tma_id": "two", "conversations": [turns[0], turns[0], turns[1]]},
        {"tma_id": "open", "conversations": turns[:1]},
        {"tma_id": "good", "conversations": turns},
    ]
    _, made = exported(odd, "llama-factory", tmp_path)
    assert made.changed == (
        Change(
            *("two", "place 1 of the order", "dropped"),
            "turn 2 is by user; expected assistant or function_call",
        ),
        Change("open", "place 2 of the order", "dropped", "it does not end with an answer"),
    )


@pytest.mark.parametrize("chats", [False, True])
def test_trl_keeps_what_is_written_for_it_and_loses_what_is_named(
    chats: bool,
    tmp_path: Path,
    words: PreTrainedTokenizerFast,
    model: Callable[[], PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trl = pytest.importorskip("trl", reason="needs trl: pip install 'tma[export]'")
    from trl.scripts.sft import make_parser

    long = {"tma_id": "long", "prompt": "say", "completion": " w" * 9}
    gone = {"tma_id": "gone", "prompt": "say " * 8, "completion": "w"}
    chat = {"tma_id": "c", "messages": [{"role": "user", "content": "say " * 9}]}
    rows = [*ROWS[:3], long, chat if chats else gone, *ROWS[3:]]
    folder = tmp_path / "out"
    made = tma.export(of(rows), rows, "trl", folder, tokenizer=words, max_length=8, batch_size=4)
    monkeypatch.chdir(folder)
    _, args, _, datasets = make_parser().parse_args_and_config(
        [*("--config", "trl.yaml", "--use_cpu", "true", "--bf16", "false", "--report_to", "none")],
        fail_with_unknown_args=True,
    )
    train = trl.get_dataset(datasets)["train"]
    ids = [row["tma_id"] for row in rows]
    assert list(train["tma_id"]) == ids

    def lengths(**given: Any) -> tuple[Trainer, dict[str, int]]:
        changed = replace(args, **given)
        trainer = trl.SFTTrainer(model(), changed, train_dataset=train, processing_class=words)
        return trainer, {row["tma_id"]: len(row["input_ids"]) for row in trainer.train_dataset}

    (_, whole), (trainer, cut) = lengths(max_length=None), lengths()
    named = {what: [one.id for one in made.changed if one.what == what] for what in WHAT}
    assert named["dropped"] == [name for name in ids if name not in cut]
    assert named["truncated"] == [name for name in cut if cut[name] < whole[name]]
    assert len(named["truncated"]) > 0 and (chats or named["dropped"] == ["gone"])
    kept = [row for row in rows if row["tma_id"] in cut]
    of(kept).save("kept.json")
    tma.OrderGuard("kept.json").watch(trainer)
    trainer.train()
    assert tma.verify("kept.json", "consumed.jsonl", epochs=3) == 3 * len(kept)
