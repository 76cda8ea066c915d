from __future__ import annotations

import json
from typing import Any

import pytest

from tma.data.formats import Instance, recognise
from tma.errors import DataError


def read(row: dict[str, Any], columns: dict[str, str] | None = None) -> Instance:
    return recognise(row, columns, "d").instance(row)


def two(row: dict[str, Any]) -> tuple[str | None, str | None]:
    found = read(row)
    return found.prompt, found.response


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": " p\r\n", "response": "r "}, (" p\r\n", "r ")),
        ({"prompt": "p", "completion": "c"}, ("p", "c")),
        ({"inputs_pretokenized": "i", "targets_pretokenized": "\nt", "targets": [3]}, ("i", "\nt")),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, ("Add.\n\n1, 2", "3")),
        ({"instruction": "Sing.", "input": "", "output": "la"}, ("Sing.", "la")),
        ({"instruction": "Sing.", "output": "la"}, ("Sing.", "la")),
        ({"context": "c", "question": "q", "answers": {"text": []}}, ("c\n\nq", None)),
        ({"context": "c", "question": "", "answers": {"text": ["a"]}}, (None, "a")),
        ({"context": "c", "question": "q", "answers": ""}, ("c\n\nq", None)),
        ({"messages": None}, (None, None)),
        ({"messages": []}, (None, None)),
        ({"messages": [{"role": "system", "content": "s"}]}, (None, None)),
        ({"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}, ("a", "b")),
        ({"prompt": 0, "response": False}, ("0", "False")),
        ({"prompt": float("nan"), "response": "\u2003\n"}, (None, None)),
        ({"prompt": b"caf\xc3\xa9", "response": 1.5}, ("café", "1.5")),
    ],
)
def test_prompt_and_response_of_each_format(row: dict[str, Any], expected: tuple[Any, Any]) -> None:
    assert two(row) == expected


def test_squad_puts_the_question_after_its_context() -> None:
    row = {"id": "7", "context": "Ada was born in 1815.", "question": "When?"}
    answers = {"text": ["1815", "in 1815", "1815"], "answer_start": [16, 13, 16]}
    found = read(row | {"answers": answers})
    assert found.prompt == "Ada was born in 1815.\n\nWhen?"
    assert found.response == "1815"
    assert json.loads(str(found.meta)) == {
        "id": "7",
        "answers": answers,
        "references": ["1815", "in 1815"],
    }
    assert read(row | {"answers": {"text": ["1815"]}}).meta == '{"id": "7"}'
    placed = [{"text": "1815", "answer_start": 16}]
    assert json.loads(str(read(row | {"answers": placed}).meta)) == {"id": "7", "answers": placed}
    assert read(row | {"answers": [{"text": "1815"}]}).response == "1815"
    assert read(row | {"answers": ["x", "y"]}).response == "x"


def test_the_first_exchange_of_messages_with_the_system_message_before_it() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    found = read({"messages": messages, "category": "Chat"})
    assert (found.prompt, found.response) == ("Be kind.\n\nHi", "Hello")
    assert json.loads(str(found.meta)) == {
        "category": "Chat",
        "rest": [{"role": "user", "content": "Bye"}],
    }


def test_sharegpt_roles_and_a_reply_before_any_question() -> None:
    turns = [("gpt", "Welcome"), ("human", "One"), ("human", "Two"), ("gpt", "Three")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    found = read(row)
    assert (found.prompt, found.response) == ("One\n\nTwo", "Three")
    assert json.loads(str(found.meta)) == {"rest": [{"from": "gpt", "value": "Welcome"}]}


def test_what_else_the_messages_of_the_exchange_have_is_kept() -> None:
    call = [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi", "name": "Ann", "weight": None},
        {"role": "user", "content": "You?"},
        {"role": "assistant", "content": "Yes", "weight": 0, "tool_calls": call},
        {"role": "user", "content": "Bye", "name": "Ann"},
    ]
    assert json.loads(str(read({"messages": messages}).meta)) == {
        "exchange": [
            {"role": "user", "name": "Ann"},
            {"role": "user"},
            {"role": "assistant", "weight": 0, "tool_calls": call},
        ],
        "rest": [{"role": "user", "content": "Bye", "name": "Ann"}],
    }


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["c", "a"], ["a", "b", "c"]),
        ("d", ["a", "b", "d"]),
        ([{"text": "c"}], ["a", "b", {"text": "c"}]),
        (None, ["a", "b"]),
    ],
)
def test_references_of_the_source_come_after_its_responses(own: Any, expected: list[Any]) -> None:
    found = read({"prompt": "p", "response": ["a", "b"], "references": own})
    assert found.response == "a"
    assert json.loads(str(found.meta)) == {"references": expected}
    alone = read({"prompt": "p", "response": "a", "references": ["c"]})
    assert json.loads(str(alone.meta)) == {"references": ["c"]}


def test_a_saved_row_has_what_is_in_its_meta() -> None:
    row = {"id": "i", "prompt": "x", "response": "y", "task": None}
    found = read(row | {"meta": '{"dataset": "d", "references": ["y", "z"]}'})
    meta = '{"dataset": "d", "references": ["y", "z"], "id": "i"}'
    assert found == Instance(None, "d", "x", "y", meta)
    assert read(row | {"meta": {"dataset": "d"}}).source == "d"
    for text in ('{"a":1,  "a":2}', "{broken", "a note"):
        assert json.loads(str(read(row | {"meta": text}).meta)) == {"id": "i", "meta": text}


def test_other_forms_of_messages() -> None:
    turns = [{"role": None, "content": None, "from": who, "value": who} for who in ("human", "gpt")]
    assert two({"messages": turns}) == ("human", "gpt")
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = {"role": "assistant", "content": "c"}
    assert two({"messages": [{"role": "user", "content": content}, answer]}) == ("ab", "c")


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("messages", "[]", "column messages holds a str; expected a list"),
        ("messages", {"from": ["gpt"] * 2, "value": ["a"]}, "holds 2 from, 1 value; expected as"),
        ("messages", ["hi"], "column messages holds a str; expected role and content"),
        ("messages", [{"role": "narrator"}], "the role 'narrator'; known are: user"),
        ("messages", [{"role": "user", "content": [{"type": "image"}]}], "a part that is no text"),
        ("messages", [{"role": "user", "content": {"a": 1}}], "holds a dict; expected text"),
        ("response", {"a": 1}, "column response holds a dict; expected text"),
        ("response", b"\xff", "column response holds bytes that are not UTF-8"),
        ("answers", "{'text': ['a']}", "column answers holds text; expected a list"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(column: str, cell: Any, words: str) -> None:
    others = {"response": {"prompt": "p"}, "answers": {"context": "c", "question": "q"}}
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
        ({"prompt": "a", "response": "z"}, "no column z; it has a, b"),
        ({"conversation": "a", "prompt": "b"}, "give prompt and response, or a conversation"),
    ],
)
def test_a_wrong_mapping_is_named(columns: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read({"a": "1", "b": "2"}, columns)


def test_task_and_source_can_be_named_alone() -> None:
    row = {"prompt": "p", "response": "r", "kind": "k", "origin": "o"}
    found = read(row, {"task": "kind", "source": "origin"})
    assert found == Instance("k", "o", "p", "r", '{"origin": "o"}')


def test_meta_is_json_whatever_it_holds() -> None:
    row = {"prompt": "p", "response": "r", "score": float("inf"), "raw": b"x", "é": ["ü"]}
    assert json.loads(str(read(row).meta)) == {"score": None, "raw": "b'x'", "é": ["ü"]}
