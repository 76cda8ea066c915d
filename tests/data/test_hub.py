"""The hub by its own protocol: a local one serves small copies, real libraries ask it.

`HF_ENDPOINT` is read on import: what loads runs in processes of its own, one that may connect and
one that may not, which answer question after question.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tma
from tests.hub import MEMBER, Hub, serving
from tma.data import load as data
from tma.data import p3

Rows = Sequence[Mapping[str, Any]]
Answer = dict[str, Any]
ROOT = Path(tma.__file__).parents[1]


def child() -> None:
    """Answer questions, each as a new process would."""
    import time

    from huggingface_hub import HfFileSystem, constants

    from tma.data import hub

    time.sleep = lambda _: None  # huggingface_hub waits before it tries again,
    constants.DOWNLOAD_CHUNK_SIZE = 1000  # and keeps what it has of a file in steps of 10 MB
    said = list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("tma").addHandler(handler)
    answers = {"load": _loaded, "commit": _commit, "model": _model}
    for line in sys.stdin:
        question = json.loads(line)
        os.environ.update(question["env"])
        hub.pinned.cache_clear()
        HfFileSystem.clear_instance_cache()
        said.clear()
        try:
            answer = answers[question["what"]](question["name"], question["given"])
        except tma.errors.TmaError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer | {"said": said}) + "\n")
        sys.stdout.flush()


def _loaded(name: str, given: Answer) -> Answer:
    found = tma.load(name, **{"split": "train"} | given)
    return {
        "id": found["id"][:],
        "prompt": found["prompt"][:],
        "task": found["task"][:],
        "read": (data.manifest(found) or {})["read"],
    }


def _commit(name: str, given: Answer) -> Answer:
    from tma.data.registry import LoadOptions, find

    source = find(name, LoadOptions(**given))
    return {"commit": source.commit, "key": source.key}


def _model(name: str, given: Answer) -> Answer:
    from tma.train import models

    model, tokenizer = models.load(name, **given)
    return {
        "weights": sum(float(p.double().sum()) for p in model.parameters()),
        "tokens": tokenizer("to be")["input_ids"],
        "fingerprint": models.fingerprint(name),
    }


class Loader:
    """A process that loads."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.data.test_hub"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "", **env},
        )

    def ask(self, what: str, name: str, env: Mapping[str, str], **given: Any) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        question = {"what": what, "name": name, "env": env, "given": given}
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer: Answer = json.loads(self.process.stdout.readline())
        return answer


class Asked:
    """A hub, and who asks it: with a cache of the test's own."""

    def __init__(self, hub: Hub, loaders: Mapping[bool, Loader], cache: Path) -> None:
        self.hub, self.loaders, self.env = hub, loaders, {"TMA_CACHE": str(cache), "HF_TOKEN": ""}

    def __call__(
        self, name: str, *, what: str = "load", offline: bool = False, **given: Any
    ) -> Answer:
        self.hub.log.clear()
        return self.loaders[offline].ask(what, name, self.env, **given)

    def refused(self, name: str, **given: Any) -> str:
        text = str(self(name, **given)["error"])
        assert "\n" not in text
        return text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[bool, Loader]]]:
    with serving() as hub:
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
        loaders = {off: Loader(home | {"HF_HUB_OFFLINE": str(int(off))}) for off in (False, True)}
        yield hub, loaders
        for loader in loaders.values():
            loader.process.kill()
            loader.process.wait()


@pytest.fixture
def asked(served: tuple[Hub, dict[bool, Loader]], tmp_path: Path) -> Asked:
    return Asked(*served, tmp_path / "asked")


def parquet(rows: Rows, group: int | None = None) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out, row_group_size=group)
    return out.getvalue()


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pairs(*prompts: str) -> dict[str, bytes]:
    """Files of a dataset of a train and a test file."""
    rows = [{"prompt": prompt, "response": "r"} for prompt in prompts]
    return {
        "README.md": b"# A card without settings\n",
        ".gitattributes": b"*.parquet filter=lfs\n",
        "train.jsonl": jsonl(rows),
        "test.jsonl": jsonl([{"prompt": f"not {prompts[0]}", "response": "r"}]),
    }


# Each source in its own layout


def p3_row(text: str) -> dict[str, Any]:
    return {
        "answer_choices": ["a", "b"],
        "inputs": [3, 4],
        "inputs_pretokenized": text,
        "targets": [5, 1],
        "targets_pretokenized": "\na",
    }


def p3_files(
    tasks: Mapping[str, Mapping[str, int]], noise: int = 8, group: int | None = None
) -> dict[str, bytes]:
    """Files of bigscience/P3, of tasks → splits → rows; `noise`: bytes that are not compressed."""
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {task}\n  data_files:\n"
        + "".join(f"  - split: {part}\n    path: {task}/{part}-*\n" for part in splits)
        for task, splits in tasks.items()
    )
    files = {"README.md": (card + "---\n").encode(), ".gitignore": b""}
    for task, splits in tasks.items():
        for part, count in splits.items():
            some = random.Random(task)
            rows = [p3_row(f"{part} {k} {some.randbytes(noise).hex()}") for k in range(count)]
            files[f"{task}/{part}-00000-of-00001.parquet"] = parquet(rows, group)
    return files


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


def no_robots() -> dict[str, bytes]:
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: data/train-*\n  - split: test\n    path: data/test-*\n---\n"
    )
    files = {"README.md": card.encode(), ".gitattributes": b""}
    for part, count in (("train", 3), ("test", 2)):
        rows = []
        for k in range(count):
            said = [("system", "Be brief."), ("user", f"{part} {k}"), ("assistant", "Yes.")]
            messages = [{"content": content, "role": role} for role, content in said]
            row = {"prompt": f"{part} {k}", "prompt_id": str(k), "messages": messages}
            rows.append(row | {"category": "Chat"})
        files[f"data/{part}-00000-of-00001.parquet"] = parquet(rows)
    return files


def natural_instructions() -> dict[str, bytes]:
    row = {"task_name": "task1_quiz", "id": "1", "definition": "Answer", "inputs": "q"}
    train = [row | {"targets": "x"}, row | {"targets": "y"}, row | {"id": "2", "targets": "x"}]
    test = [row | {"task_name": "task9_quiz", "targets": "z"}]
    return {
        "README.md": b"---\ntask_categories:\n- other\n---\n",
        "get_ni.py": b"import json\n",
        "train/task1_quiz_train.jsonl": jsonl(train),
        "train/task2_quiz_train.jsonl": jsonl([row | {"task_name": "task2_quiz", "targets": "w"}]),
        "test/task9_quiz_test.jsonl": jsonl(test),
    }


def flan_mini() -> dict[str, bytes]:
    features = "".join(f"  - name: {name}\n    dtype: string\n" for name in ("id", "source"))
    features += "  - name: conversations\n    dtype: list\n"  # which `datasets` does not know
    card = f"---\ndataset_info:\n  features:\n{features}---\n"
    files = {"README.md": card.encode(), "flan_mini.json.zip": b"PK, a gigabyte"}
    for chunk in range(2):
        rows = [
            {"id": f"{t} {k}", "source": f"flan/{t}", "conversations": turns(f"{t} {k}?", "yes")}
            for k in range(chunk * 15, chunk * 15 + 15)
            for t in range(73)
        ]
        files[f"data/chunk_{chunk}.parquet"] = parquet(rows)
    return files


def sharegpt() -> dict[str, bytes]:
    rows = [{"id": str(k), "items": turns(f"hello {k}", "hi", "more")} for k in range(20)]
    return {
        "README.md": b"---\npretty_name: OpenChat\n---\n",
        "openchat.train.json": b"[[1, 2, 3]]",
        "sharegpt_clean.json": b"no JSON",
        "sharegpt_gpt4.json": json.dumps(rows).encode(),
    }


T0 = {
    "xsum_tldr": {"train": 6, "validation": 2},
    "super_glue_rte_does": {"train": 2, "validation": 3},
    "squad_v2_ask": {"train": 2},
    "super_glue_rte_does_score_eval": {"validation": 2},
}
PAPER = {
    "niv2": ("Muennighoff/natural-instructions", natural_instructions(), (3, 1), 3),
    "p3": ("bigscience/P3", p3_files(T0), (6, 3), 2),
    "flan-mini": ("declare-lab/flan-mini", flan_mini(), (64 * 20, 9 * 5), 2),
    "sharegpt": ("openchat/openchat_sharegpt4_dataset", sharegpt(), (18, 2), 1),
    "no-robots": ("HuggingFaceH4/no_robots", no_robots(), (3, 2), 2),
}
"""Name → id, files, instances for training and test, files of them that are read."""


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_datasets_are_read_as_from_a_local_copy(
    asked: Asked, own_cache: Path, tmp_path: Path, name: str
) -> None:
    hub_id, files, counts, needed = PAPER[name]
    asked.hub.repo(f"datasets/{hub_id}", files)
    for path, content in files.items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(content)
    found = {part: asked(name, split=part) for part in ("train", "test")}
    assert tuple(len(answer["id"]) for answer in found.values()) == counts
    copy = tmp_path / "copy" / ("data" if name == "flan-mini" else "")
    for part, answer in found.items():
        assert answer["id"] == tma.load(f"{name}:{copy}", split=part)["id"][:]
    # What nothing is read from is not fetched, and the second call finds all in the cache.
    assert found["test"]["said"] == []
    said = rf"dataset {hub_id}: fetching (.* configurations, )?{needed} files, \d+\.\d MB"
    assert [re.fullmatch(said, text) is not None for text in found["train"]["said"]] == [True]


def test_p3_says_how_many_configurations_it_fetches_and_lists_them_once(asked: Asked) -> None:
    tasks = {f"imdb_{k}": {"train": 1} for k in range(120)} | {"math_qa_x": {"train": 1}}
    files = p3_files(tasks)
    repo = asked.hub.repo("datasets/bigscience/P3", files)
    size = sum(len(content) for path, content in files.items() if path.startswith("imdb")) / 1e6
    said = f"fetching 120 of 121 configurations, 120 files, {size:.1f} MB"
    assert asked("p3", by="task")["said"] == [f"dataset bigscience/P3: {said}"]
    # One listing, in pages; a request for what a file is, and one for its content.
    assert len(asked.hub.asked("/tree/")) == 3
    assert len(asked.hub.asked("/resolve/")) == len(asked.hub.asked("/cdn/")) == 120
    # Another process asks where the branch is, and one with other settings nothing else.
    for by in ("task", "instance"):
        assert asked("p3", by=by)["said"] == []
        assert asked.hub.log == ["GET /api/datasets/bigscience/P3?expand=sha"]
    pinned = f"p3@{repo.branches['main']}"
    trains = next(fold for fold in range(5) if "imdb" not in p3.fold(fold)[0])
    for given in ({"held_out": ["imdb_7"]}, {"fold": trains}):
        assert asked(pinned, offline=True, **given)["read"] == 120


@pytest.mark.parametrize(
    "given",
    [
        {"per_task": (3, 2)},
        {"per_task": (3, 2), "seed": 1, "held_out": ["amazon_polarity"]},
        {"per_task": (3, 2), "fold": 0},
        {"per_task": (3, 3), "by": "task"},
        {"per_task": (3, None), "split": "all"},
    ],
)
def test_caps_of_p3_fetch_little_and_draw_what_they_draw_from_a_copy(
    asked: Asked, own_cache: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    names = ("amazon_polarity_x", "imdb_y", "super_glue_rte_z")
    files = p3_files({name: {"train": 2000, "validation": 500} for name in names}, 999, group=50)
    asked.hub.repo("datasets/bigscience/P3", files)
    for path in (path for path in files if path.endswith(".parquet")):
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(files[path])
    answer = asked("p3", **given)
    whole = tma.load(f"p3:{tmp_path / 'copy'}", **{"split": "train"} | given)
    assert answer["id"] == whole["id"][:]
    # A fold has no part for what T0 held out.
    wanted = [path for path in files if re.match("(amazon|imdb).*/train|super.*/validation", path)]
    wanted = wanted[:2] if "fold" in given else wanted
    assert answer["read"] == (4000 if "fold" in given else 4500)
    size = sum(len(files[path]) for path in wanted)
    said = f"{len(wanted)} of 3 configurations, {len(wanted)} files, at most {size / 1e6:.1f} MB"
    assert answer["said"] == [f"dataset bigscience/P3: fetching {said}"]
    spans = [re.findall(r"bytes=(\d+)-(\d+)", line)[0] for line in asked.hub.asked("/cdn/")]
    fetched = sum(int(end) - int(start) + 1 for start, end in spans)
    assert 0 < fetched < size / 4
    assert len(asked.hub.asked("/tree/")) == 1


def test_a_cap_that_may_draw_other_rows_of_p3_waits_until_all_are_known(asked: Asked) -> None:
    asked.hub.repo("datasets/bigscience/P3", p3_files(T0))
    for given in ({"max_instance_tokens": 9999}, {"by": "instance"}, {"by": "task"}):
        answer = asked("p3", per_task=(2, 1), **given)
        assert asked.hub.asked("bytes=") == []
        assert answer["read"] == 6 + 3


# Commits


def test_the_commit_is_known_and_a_moved_branch_gives_new_rows_and_the_old_pinned(
    asked: Asked,
) -> None:
    repo = asked.hub.repo("datasets/a/moving", pairs("old"))
    old = repo.branches["main"]
    before = asked("a/moving", what="commit")
    assert before["commit"] == f"a/moving@{old}"
    assert asked("a/moving")["prompt"] == ["old"]
    new = repo.commit(pairs("new"))
    after = asked("a/moving", what="commit")
    assert after["commit"] == f"a/moving@{new}" != before["commit"]
    assert after["key"] != before["key"]
    assert asked("a/moving")["prompt"] == ["new"]
    assert asked(f"a/moving@{old}")["prompt"] == ["old"]
    assert asked.hub.log == []  # a commit that was read is not asked for
    repo.commit(pairs("tagged"), "v1.0")
    assert asked("a/moving@v1.0")["prompt"] == ["tagged"]
    repo.commit(pairs("proposed"), "refs/pr/7")
    assert asked("a/moving@refs/pr/7")["prompt"] == ["proposed"]


def test_every_request_of_a_load_is_for_its_commit(asked: Asked) -> None:
    repo = asked.hub.repo("datasets/a/pinned", pairs("p"))
    assert asked("a/pinned")["prompt"] == ["p"]
    others = [line for line in asked.hub.log if repo.branches["main"] not in line]
    assert others[0] == "GET /api/datasets/a/pinned?expand=sha"
    assert all("/cdn/" in line for line in others[1:])


def test_offline_the_last_known_commit_is_read_from_the_cache(asked: Asked, tmp_path: Path) -> None:
    repo = asked.hub.repo("datasets/a/kept", pairs("one", "two"))
    words = r"a/kept' is not in the cache \(HF_HOME\), .* \(HF_HUB_OFFLINE is set\)\. Connect once"
    assert re.search(words, asked.refused("a/kept", offline=True))
    assert asked("a/kept")["prompt"] == ["one", "two"]
    known = asked("a/kept", what="commit")
    repo.commit(pairs("later"))
    for given in ({}, {"per_task": 5}):  # stored; and read from what was fetched
        assert asked("a/kept", offline=True, **given)["prompt"] == ["one", "two"]
    assert asked("a/kept", offline=True, what="commit")["commit"] == known["commit"]
    assert asked.hub.log == []
    # `datasets` itself would take the commit that it read last, whatever is asked for.
    assert asked("a/kept")["prompt"] == ["later"]
    for given in ({}, {"seed": 1}):
        assert asked(known["commit"], offline=True, **given)["prompt"] == ["one", "two"]
    asked.hub.down = True
    said = f"dataset a/kept: the hub does not answer; a/kept@{repo.branches['main']} is read"
    assert asked("a/kept")["said"] == [said]
    assert "could not be fetched whole: Server disconnected" in asked.refused("a/unknown")
    asked.hub.down = False
    repo.commit(pairs("never read"))
    asked("a/kept", what="commit")
    assert "is not in the cache (HF_HOME)" in asked.refused("a/kept", offline=True)
    repo.gated = True
    assert "is gated: accept its terms" in asked.refused("a/kept")
    assert asked(known["commit"], seed=2)["prompt"] == ["one", "two"]


# What the hub refuses


TERMS = r"accept its terms at https://huggingface\.co/datasets/a/\w+"
COPY = r"or give a local copy instead of the name\.$"
LOGIN = r"log in with `hf auth login` or set HF_TOKEN, " + COPY
HIDDEN = r"is not on the hub, or is private\. Check the id, " + LOGIN


@pytest.mark.parametrize(
    ("name", "treated", "token", "words"),
    [
        ("open401", {"gated": True}, "", f"is gated: {TERMS} and {LOGIN}"),
        (
            "open403",
            {"gated": True},
            "hf_other",
            f"is gated, and .* may not read it: {TERMS}, {COPY}",
        ),
        ("shut401", {"private": True}, "", HIDDEN),
        ("shut404", {"private": True}, "hf_other", HIDDEN),
        ("none401", None, "", HIDDEN),
        ("none404", None, "hf_other", HIDDEN),
    ],
)
def test_a_refusal_says_what_is_needed(
    asked: Asked, name: str, treated: dict[str, bool] | None, token: str, words: str
) -> None:
    if treated is not None:
        asked.hub.repo(f"datasets/a/{name}", pairs(name), **treated)
    asked.env["HF_TOKEN"] = token
    assert re.search(rf"^dataset='a/{name}' {words}", asked.refused(f"a/{name}"))
    if treated is not None:
        asked.env["HF_TOKEN"] = MEMBER
        assert asked(f"a/{name}")["prompt"] == [name]


@pytest.mark.parametrize("name", ["no-robots", "p3"])
def test_gated_files_of_the_papers_datasets_are_refused_alike(asked: Asked, name: str) -> None:
    hub_id, files, *_ = PAPER[name]
    asked.hub.repo(f"datasets/{hub_id}", files | {"notes.md": b"a commit of its own"}, gated=True)
    for given in ({}, {"per_task": 1}):
        assert "is gated: accept its terms at" in asked.refused(name, **given)


def test_a_revision_that_is_not_there_is_named(asked: Asked) -> None:
    asked.hub.repo("datasets/a/b", pairs("p"))
    for revision in ("v9", "0" * 40):
        text = asked.refused(f"a/b@{revision}")
        assert f"dataset='a/b@{revision}' is not on the hub: no such revision. Give" in text


def test_a_renamed_dataset_is_read_and_its_new_name_said(asked: Asked) -> None:
    asked.hub.repo("datasets/old/name", moved_to="new/name")
    asked.hub.repo("datasets/new/name", pairs("p"))
    answer = asked("old/name")
    assert answer["prompt"] == ["p"]
    assert answer["said"] == [
        "dataset old/name: its name on the hub is new/name now. Give that one."
    ]


def test_a_layout_that_is_not_as_expected_is_told(asked: Asked) -> None:
    asked.hub.repo("datasets/bigscience/P3", {"README.md": b"", "P3.py": b""})
    assert "has no folders of T0's tasks with Parquet files. Name another" in asked.refused("p3")
    asked.hub.repo("datasets/HuggingFaceH4/no_robots", pairs("p"))
    assert r"has no files data/*.parquet. Name another" in asked.refused("no-robots")


# Downloads that break off


def test_a_download_that_breaks_off_goes_on_where_it_stopped(asked: Asked) -> None:
    prompts = [f"{k} " + "x" * 100 for k in range(500)]
    asked.hub.repo("datasets/a/broken", pairs(*prompts), breaks=1)
    assert asked("a/broken")["prompt"] == prompts
    half = len(pairs(*prompts)["train.jsonl"]) // 2
    (again,) = asked.hub.asked("bytes=")
    assert half - 1000 < int(re.findall(r"bytes=(\d+)-$", again)[0]) <= half


@pytest.mark.parametrize("name", ["no-robots", "p3", "a/never"])
def test_a_download_that_never_ends_is_told_and_nothing_is_kept(asked: Asked, name: str) -> None:
    hub_id, files = ("a/never", pairs(name)) if name == "a/never" else PAPER[name][:2]
    files = {path: _other(content) for path, content in files.items()}
    repo = asked.hub.repo(f"datasets/{hub_id}", files, breaks=10**6)
    for given in ({}, {"per_task": (2, 2)}):
        words = rf"^dataset='{hub_id}' could not be fetched whole: .*\. Ask for it again"
        assert re.search(words, asked.refused(name, **given))
    repo.breaks = 0
    assert len(asked(name)["id"]) == {"no-robots": 3, "p3": 6, "a/never": 1}[name]


def _other(content: bytes) -> bytes:
    """Return the rows of a Parquet file in other bytes, which no cache has."""
    if not content.startswith(b"PAR1"):
        return content
    out = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(content)), out, compression="gzip")
    return out.getvalue()


# Any dataset


def test_a_dataset_that_once_was_a_script_is_read_from_the_hubs_conversion(asked: Asked) -> None:
    repo = asked.hub.repo("datasets/a/scripted", {"scripted.py": b"", "README.md": b""})
    words = "dataset='a/scripted@refs/convert/parquet' is not on the hub: no such revision"
    assert words in asked.refused("a/scripted")
    files = {
        f"{name}/{part}/0000.parquet": parquet([{"prompt": f"{name} {part}", "response": "r"}])
        for name in ("plain", "raw")
        for part in ("train", "test")
    }
    commit = repo.commit(files | {".gitattributes": b""}, "refs/convert/parquet")
    assert "has 2 configurations: plain, raw. Give one as" in asked.refused("a/scripted")
    assert asked("a/scripted:raw")["prompt"] == ["raw train"]
    assert asked("a/scripted:raw", what="commit")["commit"] == f"a/scripted@{commit}"
    assert asked(f"a/scripted@{commit}:plain", split="test")["prompt"] == ["plain test"]
    refused = asked.refused(f"a/scripted@{repo.branches['main']}")
    assert "by a script of its own, which is not run. Give a/scripted@refs/convert/" in refused
    # Converted in part, it is not read as if it were whole.
    part = {"plain/partial-train/0000.parquet": files["plain/train/0000.parquet"]}
    repo.commit(part, "refs/convert/parquet")
    assert ": the hub has converted it only in part. Give" in asked.refused("a/scripted")


def test_conversations_with_tools_are_read_from_a_dataset_with_configurations(
    asked: Asked,
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    messages = [
        {"role": "user", "content": "How much is 1 and 2?", "tool_calls": None},
        {"role": "assistant", "content": "I add them.", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_calls": None},
        {"role": "assistant", "content": "3.", "tool_calls": None},
    ]
    row = {"messages": messages, "tools": json.dumps([{"name": "add"}])}
    card = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.jsonl\n"
        for name in ("chat", "code")
    )
    files = {"README.md": f"---\nconfigs:\n{card}---\n".encode()}
    files |= {"chat/a.jsonl": jsonl([row] * 12), "code/b.jsonl": jsonl([row])}
    asked.hub.repo("datasets/a/tools", files)
    answer = asked("a/tools:chat", split="all")
    assert answer["read"] == 12
    assert set(answer["prompt"]) == {"How much is 1 and 2?"}
    words = r"Config name is missing.*Give one as owner/name:configuration"
    assert re.search(words, asked.refused("a/tools", split="all"))


def test_a_row_is_told_by_its_place_in_the_commit(asked: Asked) -> None:
    row = {"prompt": "p", "prompt_id": "1", "messages": turns("hi", " "), "category": "Chat"}
    files = {f"data/{part}-00000-of-00001.parquet": parquet([row]) for part in ("test", "train")}
    repo = asked.hub.repo("datasets/HuggingFaceH4/no_robots", files)
    place = f"HuggingFaceH4/no_robots@{repo.branches['main']}/data/train-00000-of-00001.parquet"
    refused = asked.refused("no-robots", empty="error")
    assert refused.startswith(f"{place}, row 1: the response is empty")
    task = {"imdb_x/train-00000-of-00001.parquet": parquet([p3_row("p"), p3_row(" ")])}
    place = f"bigscience/P3@{asked.hub.repo('datasets/bigscience/P3', task).branches['main']}/imdb"
    for given in ({}, {"per_task": 2}):
        refused = asked.refused("p3", empty="error", split="all", **given)
        assert re.match(f"{place}.*, row 2: the prompt is empty", refused)


def test_rows_that_cannot_be_read_are_one_message(asked: Asked) -> None:
    asked.hub.repo("datasets/a/damaged", pairs("p") | {"train.jsonl": b'{"prompt": 1}\n{"pro'})
    assert "dataset='a/damaged' could not be read: " in asked.refused("a/damaged")
    files = pairs("p") | {"dev.jsonl": jsonl([{"prompt": "d", "response": "r"}])}
    asked.hub.repo("datasets/a/three", files)
    assert asked("a/three")["said"] == ["dataset a/three: splits that are not read: validation"]


# Models


def test_a_model_is_read_by_its_hub_id_at_its_commit(asked: Asked, tiny_model: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    repo = asked.hub.repo("models/a/tiny", files)
    commit = repo.branches["main"]
    from_hub, from_folder = asked("a/tiny", what="model"), asked(str(tiny_model), what="model")
    assert from_hub["weights"] == from_folder["weights"]
    assert from_hub["tokens"] == from_folder["tokens"]
    assert from_hub["fingerprint"] == f"a/tiny@{commit}"
    repo.commit(files | {"model.safetensors": b"no weights"})
    pinned = asked("a/tiny", what="model", revision=commit)
    assert pinned["weights"] == from_hub["weights"]
    assert "model='a/tiny' could not be loaded" in asked.refused("a/tiny", what="model")


if __name__ == "__main__":
    child()
