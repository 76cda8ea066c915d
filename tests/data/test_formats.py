from __future__ import annotations

import json
from typing import Any

import pytest

from tma.data.formats import Instance, recognise
from tma.errors import DataError

Turn = dict[str, Any]


def read_all(row: dict[str, Any], **given: Any) -> tuple[list[Instance], list[str]]:
    notes = list[str]()
    columns = given.pop("columns", None)
    return recognise(row, columns, "d", **given).instances(row, notes.append), notes


def read(row: dict[str, Any], columns: dict[str, str] | None = None) -> Instance:
    (found,), _ = read_all(row, columns=columns)
    return found


def two(row: dict[str, Any]) -> tuple[str | None, str | None]:
    found = read(row)
    return found.prompt, found.response


def said(*turns: tuple[str, Any]) -> dict[str, list[Turn]]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": " p\r\n", "response": "r "}, (" p\r\n", "r ")),
        ({"prompt": "p", "completion": "c"}, ("p", "c")),
        ({"inputs_pretokenized": "i", "targets_pretokenized": "\nt", "targets": [3]}, ("i", "\nt")),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, ("Add.\n\n1, 2", "3")),
        ({"instruction": "Sing.", "input": "", "output": "la"}, ("Sing.", "la")),
        ({"instruction": "Sing.", "output": "la", "system": "Loud."}, ("Loud.\n\nSing.", "la")),
        (
            {"instruction": "And mine?", "output": "Bo.", "history": [["I am Bo.", "Hi Bo."]]},
            ("I am Bo.\n\nHi Bo.\n\nAnd mine?", "Bo."),
        ),
        ({"context": "c", "question": "q", "answers": {"text": []}}, ("c\n\nq", None)),
        ({"context": "c", "question": "", "answers": {"text": ["a"]}}, (None, "a")),
        ({"context": "c", "question": "q", "answers": ""}, ("c\n\nq", None)),
        ({"context": "c", "question": "q", "answers": [{"text": "1815"}]}, ("c\n\nq", "1815")),
        ({"messages": None}, (None, None)),
        ({"messages": []}, (None, None)),
        (said(("system", "s")), (None, None)),
        ({"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}, ("a", "b")),
        (
            said(("user", "Hi"), ("assistant", "Hello")) | {"system": "Be kind."},
            ("Be kind.\n\nHi", "Hello"),
        ),
        (
            said(("gpt", "Welcome"), ("human", "One"), ("human", "Two"), ("gpt", "Three")),
            ("One\n\nTwo", "Three"),
        ),
        (
            said(("user", [{"type": "text", "text": "a"}, {"text": "b"}, "c"]), ("assistant", "d")),
            ("abc", "d"),
        ),
        ({"prompt": 0, "response": False}, ("0", "False")),
        ({"prompt": float("nan"), "response": "\u2003\n"}, (None, None)),
        ({"prompt": b"caf\xc3\xa9", "response": 1.5}, ("café", "1.5")),
    ],
)
def test_prompt_and_response_of_each_format(row: dict[str, Any], expected: tuple[Any, Any]) -> None:
    assert two(row) == expected


def test_several_answers_are_references() -> None:
    answers = {"text": ["1815", "in 1815", "1815"], "answer_start": [16, 13, 16]}
    found = read({"context": "Ada was born in 1815.", "question": "When?", "answers": answers})
    assert found[2:5] == ("Ada was born in 1815.\n\nWhen?", "1815", ["1815", "in 1815"])
    row = {"prompt": "p", "response": ["a", "b"]}
    for own, expected in (
        (["c", "a"], ["a", "b", "c"]),
        ("d", ["a", "b"]),
        ([{"text": "c"}], ["a", "b"]),
        (None, ["a", "b"]),
    ):
        assert read(row | {"references": own}).references == expected
    assert read({"prompt": "p", "response": "a"}).references is None
    assert read({"prompt": "p", "response": "a", "references": ["c"]}).references == ["c"]


CALL = {"type": "function", "function": {"name": "warm", "arguments": '{"city": "Oslo"}'}}
TOOLS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "12 degrees."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "Bye."},
    ]
}


def test_a_view_says_which_exchange_of_a_conversation_is_read() -> None:
    call = '{"name": "warm", "arguments": {"city": "Oslo"}}'
    exchanges = [
        ("How warm is it?", call),
        (f"How warm is it?\n\n{call}\n\n12", "12 degrees."),
        ("Thanks.", "Bye."),
    ]
    note = "more than one exchange, of which view='{}' reads one"
    for view, rows, notes in (
        ("first", [0], [note.format("first")]),
        ("last", [2], [note.format("last")]),
        ("all", [0, 1, 2], []),
    ):
        found, heard = read_all(TOOLS, view=view)
        pairs = [(f"Be brief.\n\n{exchanges[k][0]}", exchanges[k][1]) for k in rows]
        assert [(one.prompt, one.response) for one in found] == pairs
        assert heard == notes
        for one in found:
            assert [(e["prompt"], e["response"]) for e in one.exchanges or []] == exchanges
        assert len({one.key for one in found}) == len(found)
    assert read(said(("user", "a"), ("assistant", "b"))).exchanges is None


def test_a_key_is_over_all_that_a_trainer_sees() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"content": "Take care."},
        {"role": "user"},
        {"tool_calls": [CALL]},
    ]
    rows = [{"messages": [*TOOLS["messages"][:-1], TOOLS["messages"][-1] | c]} for c in changes]
    rows += [TOOLS | {"tools": [{"name": "warm"}]}]
    assert len({read_all(row)[0][0].key for row in rows}) == 5
    # A table has nulls where a message lacks a key, and other columns are not seen.
    same = [message | {"name": None} for message in TOOLS["messages"]]
    assert read_all({"messages": same, "n": 1})[0][0].key == read_all(TOOLS)[0][0].key
    # Of a pair they are task, prompt and response.
    assert read({"prompt": "p", "response": "r", "note": "x"}).key == "538286331e8e5b20"


@pytest.mark.parametrize(
    ("messages", "pair", "notes"),
    [
        (
            [("user", "a"), ("critic", "x"), ("assistant", "b")],
            ("a", "b"),
            ["a message of the role 'critic', which is not read"],
        ),
        (
            [("user", "a"), ("assistant", [{"type": "thinking", "thinking": "h"}, {"text": "b"}])],
            ("a", "b"),
            ["reasoning, which is not read"],
        ),
        ([("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")], ("b", "c"), []),
    ],
)
def test_what_is_not_read_is_noted(
    messages: list[tuple[str, Any]], pair: tuple[str, str], notes: list[str]
) -> None:
    (found,), heard = read_all(said(*messages))
    assert (found.prompt, found.response) == pair
    assert heard == notes


def test_a_reply_of_weight_0_is_no_response() -> None:
    row = said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    row["messages"][1]["weight"] = 0
    row["messages"][3]["weight"] = 1
    (found,), notes = read_all(row)
    assert (found.prompt, found.response) == ("c", "d")
    assert notes == ["a reply of weight 0, which is not read"]
    row["messages"][1] |= {"weight": 1, "reasoning_content": "why"}
    assert "reasoning, which is not read" in read_all(row)[1]


def test_nulls_and_two_kinds_of_names_in_a_table() -> None:
    turns = [{"role": None, "content": None, "from": who, "value": who} for who in ("human", "gpt")]
    assert two({"messages": turns}) == ("human", "gpt")


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "p"}, ("p", None)),
        ({"instruction": "i", "input": "x"}, ("i\n\nx", None)),
        ({"question": "q"}, ("q", None)),
        (said(("user", "q")), ("q", None)),
        (said(("user", "a"), ("assistant", "b"), ("user", "c")), ("a", "b")),
    ],
)
def test_prompts_may_come_without_answers(row: dict[str, Any], pair: tuple[str, Any]) -> None:
    (found,), _ = read_all(row, prompts=True)
    assert (found.prompt, found.response) == pair


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("messages", "[]", "column messages holds a str; expected a list"),
        ("messages", {"from": ["gpt"] * 2, "value": ["a"]}, "holds 2 from, 1 value; expected as"),
        ("messages", ["hi"], "column messages holds a str; expected role and content"),
        (
            "messages",
            [{"role": "narrator"}],
            "the role 'narrator', which is not read; known are: u",
        ),
        ("messages", [{"content": "x"}], "a message without a role; expected role or from"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "type 'image_url'"),
        ("messages", [{"role": "user", "content": {"a": 1}}], "holds a dict; expected text"),
        ("response", {"a": 1}, "column response holds a dict; expected text"),
        ("response", b"\xff", "column response holds bytes that are not UTF-8"),
        ("answers", "{'text': ['a']}", "column answers holds text; expected a list"),
        ("history", "x", "column history holds a str; expected a list of pairs"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(column: str, cell: Any, words: str) -> None:
    others: dict[str, dict[str, Any]] = {
        "response": {"prompt": "p"},
        "answers": {"context": "c", "question": "q"},
        "history": {"instruction": "i", "output": "o"},
    }
    with pytest.raises(DataError, match=words):
        read(others.get(column, {}) | {column: cell})


def test_two_formats_that_fit_are_a_question() -> None:
    row = {"prompt": "p", "response": "r", "messages": []}
    with pytest.raises(DataError) as caught:
        read(row)
    assert str(caught.value) == (
        "dataset='d' fits prompt/response (prompt, response) and chat messages (messages). Say "
        'which columns to read with columns={"prompt": ..., "response": ...} or '
        '{"conversation": ...}.'
    )
    assert read(row, {"prompt": "prompt", "response": "response"}).response == "r"
    assert read(row, {"conversation": "messages"}).response is None


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "a"}, "give prompt and response, or a conversation"),
        ({"answer": "a"}, "expected column names under prompt, response, task, source"),
        ({"prompt": "a", "response": "z"}, "no column z; it has a, ' b'"),
        ({"conversation": "a", "prompt": "a"}, "give prompt and response, or a conversation"),
    ],
)
def test_a_wrong_mapping_is_named(columns: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read({"a": "1", " b": "2"}, columns)


def test_task_and_source_can_be_named_alone() -> None:
    row = {"prompt": "p", "response": "r", "kind": "k", "origin": "o"}
    found = read(row, {"task": "kind", "source": "origin"})
    assert found[:4] == ("k", "o", "p", "r")
    assert read(json.loads('{"prompt": "p", "response": "r", "dataset": "d"}')).source == "d"
