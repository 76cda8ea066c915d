from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tma
from tma import Method
from tma.data import load as data
from tma.errors import DataError, OrderError, ParameterError
from tma.runs import store as runs
from tma.runs.config import RunConfig
from tma.runs.execute import RunExecutor
from tma.store import file_digest

FINISHED = {"config.json", "losses.parquet", "training.parquet", "order.json", "manifest.json"}


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    given = {"order": "tma_nft", "limit": 24, "batch_size": 8, "eval_every": 2}
    return replace(config, **given, learning_rate=1e-4, precision="auto")


def test_a_run_leaves_its_tables_its_order_and_its_manifest(config: RunConfig) -> None:
    run = tma.run(config)
    assert {p.name for p in run.folder.iterdir()} == FINISHED
    test = tma.load(config.dataset, split="test")
    steps = run.manifest["steps"]
    evaluated = sorted({0, *range(2, steps + 1, 2), steps})
    assert sorted(run.losses["step"].unique()) == evaluated
    assert len(run.losses) == len(evaluated) * len(test)
    assert set(run.losses["id"]) == set(test["id"])
    assert (run.losses["loss"] * run.losses["tokens"]).tolist() == pytest.approx(
        run.losses["loss_sum"].tolist()
    )
    assert run.training["step"].tolist() == list(range(1, steps + 1))
    assert (run.config.precision, run.manifest["precision"] in ("bf16", "fp32")) == ("auto", True)
    assert run.manifest["key"] == run.key == run.folder.name
    assert run.manifest["receipt"] == run.receipt.to_json()
    train = tma.load(config.dataset, split="train")
    assert run.manifest["inputs"]["train"] == data.fingerprint(train)
    assert run.losses["source"].isna().all()  # the file names none
    rows = tma.arrange("tma_nft", tma.embed(train), tma.embed(test), limit=24)
    assert run.order == train.select(rows)["id"]
    assert run.receipt.method == Method("tma_nft", limit=24)
    assert run.manifest["inputs"]["order"] == run.receipt.sha256
    assert run.manifest["instances"] == len(rows) >= 24


def test_a_run_says_how_many_tasks_and_answers_each_step_held(config: RunConfig) -> None:
    run = tma.run(replace(config, order="cluster", limit=16, batch_size=8, seed=3))
    # Cluster order: eight instances of one task, then of another.
    assert run.training["effective_tasks"].tolist() == [1, 1]
    train = tma.load(config.dataset, split="train")
    answer = dict(zip(train["id"], train["response"], strict=True))
    steps = (run.order[:8], run.order[8:])
    assert run.training["distinct_answers"].tolist() == [
        len({answer[one] for one in step}) for step in steps
    ]


def test_the_same_content_is_read_from_wherever_it_lies(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tma.run(config)
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    moved = shutil.copy(config.dataset, tmp_path / "moved.jsonl")
    model = shutil.copytree(config.model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for dataset in (str(moved), "moved.jsonl"):
        again = tma.run(replace(config, dataset=dataset, model=str(model)))
        assert again == first
        assert again.config.dataset == config.dataset
    assert (first.folder / "manifest.json").stat().st_mtime_ns == stamp


def test_other_settings_or_data_are_another_run(config: RunConfig, tmp_path: Path) -> None:
    first = tma.run(config)
    assert tma.run(replace(config, order="tma_fft")).folder != first.folder
    other = tmp_path / "other.jsonl"
    other.write_text(Path(config.dataset).read_text().replace("three", "3"))
    assert tma.run(replace(config, dataset=str(other))).folder != first.folder


def test_a_finished_run_is_found_and_read_without_model_and_data(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(config.model, gone / "model")
    shutil.copy(config.dataset, gone / "data.jsonl")
    config = replace(config, model=str(gone / "model"), dataset=str(gone / "data.jsonl"), seed=31)
    first = tma.run(config)
    losses = first.losses
    shutil.rmtree(gone)
    with caplog.at_level(logging.WARNING):
        again = tma.run(config)
    assert "The stored run of the same settings is read instead" in caplog.text
    assert again.folder == first.folder
    assert runs.stored(config) == again
    assert again.losses.equals(losses)
    assert again.config == config
    with pytest.raises(ParameterError, match=r"model=.* an existing folder"):  # no run has these
        tma.run(replace_unchecked(config, seed=32))


def gpt2(folder: Path, tokenizer: Any) -> None:
    """Write a tiny model with dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 49152}
    GPT2LMHeadModel(GPT2Config(n_positions=256, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def replace_unchecked(config: RunConfig, **changes: Any) -> RunConfig:
    return RunConfig.from_json(config.to_json() | changes)


def test_settings_of_another_version_are_read(config: RunConfig) -> None:
    stored = config.to_json() | {"colour": "blue", "model": "no such model"}
    del stored["pool"]
    read = RunConfig.from_json(stored)
    assert (read.model, read.pool, read.order) == ("no such model", None, "tma_nft")


def test_the_key_of_a_configuration_is_pinned() -> None:
    # Should this change, every published run would be made again: see CONTRIBUTING.
    given = {"pool": 10_000, "limit": 1024, "learning_rate": 1e-4}
    config = RunConfig.at("study", order="tma_nft", model="gemma", seed=1, **given)
    assert runs.key(config, {"model": "m", "train": "a", "test": "b"}) == "5969d4049a128b5397e0"
    # Where things are found, and settings with their default value, name nothing.
    elsewhere = replace(config, data_seed=5, test_limit=3, model="smollm2-135m-instruct")
    assert elsewhere.deciding == config.deciding
    assert "clip_norm" not in config.deciding
    assert replace(config, clip_norm=2.0).deciding == config.deciding | {"clip_norm": 2.0}


HUB = """
import json, sys, tma
from tma.train import models
from tma.runs.config import RunConfig
print(models.fingerprint("owner/tiny"))
run = tma.run(RunConfig.from_json(json.loads(sys.argv[1])))
print(run.manifest["inputs"]["model"])
"""


def test_the_commit_of_a_hub_model_is_pinned(config: RunConfig, tmp_path: Path) -> None:
    commits = ["a" * 40, "b" * 40]
    repository = tmp_path / "hub" / "models--owner--tiny"
    for commit in commits:
        shutil.copytree(config.model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    asked = replace_unchecked(config, model="owner/tiny", seed=33)
    for commit in commits:  # the branch moves
        (repository / "refs" / "main").write_text(commit)
        done = subprocess.run(
            [sys.executable, "-c", HUB, json.dumps(asked.to_json())],
            env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [f"owner/tiny@{commit}"] * 2


@pytest.mark.parametrize(
    "damage",
    ["losses.parquet", "order.json", "config.json", "no sums", "cut manifest", "no table"],
)
def test_a_damaged_run_is_made_again_with_the_same_numbers(config: RunConfig, damage: str) -> None:
    first = tma.run(config)
    losses, order, manifest = first.losses, first.order, first.manifest
    assert set(manifest["sums"]) == FINISHED - {"config.json", "manifest.json"}
    assert manifest["sums"]["order.json"] == file_digest(first.folder / "order.json")
    match damage:
        case "losses.parquet":
            losses.assign(loss_sum=0.0).drop(columns="loss").to_parquet(first.folder / damage)
        case "no sums":
            del manifest["sums"]
            (first.folder / "manifest.json").write_text(json.dumps(manifest))
        case "cut manifest":
            (first.folder / "manifest.json").write_text(json.dumps(manifest)[:40])
        case "no table":
            (first.folder / "losses.parquet").unlink()
        case _:
            text = (first.folder / damage).read_text().replace("[", "[ ")
            (first.folder / damage).write_text(text.replace('"tma_nft"', '"tma_rt"'))
    assert [e.status for e in runs.runs() if e.key == first.folder.name] == ["damaged"]
    assert runs.stored(config) is None
    again = tma.run(config)
    assert again.losses.equals(losses)
    assert again.order == order


def test_an_order_that_was_not_kept_is_refused(config: RunConfig) -> None:
    run = tma.run(config)
    file = run.folder / "order.json"
    stored = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(stored | {"ids": stored["ids"][::-1]}), "utf-8")
    with pytest.raises(OrderError, match="changed after it was written"):
        _ = run.order


def test_other_references_are_another_run_where_answers_are_scored(
    config: RunConfig, tmp_path: Path
) -> None:
    def made(references: list[str], **changes: Any) -> tma.Run:
        rows = [{"prompt": f"Say {k}", "response": ["x", *references]} for k in range(8)]
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"order": "random", "dataset": str(path), "limit": 4, "max_new_tokens": 2}
        return tma.run(replace(config, **(given | changes)))

    first = made(["y"], generate_at=(0,))
    other = made(["y", first.answers["answer"][0]], generate_at=(0,))
    assert first.manifest["inputs"]["test"] == other.manifest["inputs"]["test"]
    assert first.folder != other.folder
    assert (first.answers["exact_match"][0], other.answers["exact_match"][0]) == (0, 1)
    assert made(["y"]).folder == made(["z"]).folder  # nothing is scored


def test_too_few_instances_are_told(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = replace(config, order="random", limit=1000, seed=23)
    with caplog.at_level(logging.WARNING):
        run = tma.run(config)
    assert f"limit=1000, but the order chooses from {len(run.order)} instances" in caplog.text


def test_wrong_arguments_and_data_without_a_test_are_refused(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes: Any
    for minutes in (float("inf"), "x", -1):
        with pytest.raises(ParameterError, match=f"state_minutes={minutes!r} cannot be used"):
            tma.run(config, state_minutes=minutes)
    nothing: Any = None
    with pytest.raises(ParameterError, match=r"config=None cannot .* such as tma\.RunConfig\.at"):
        tma.run(nothing)
    for configs in ([config], {"one": config}, nothing):
        with pytest.raises(
            ParameterError, match=r"configs of type .* a dict of lists of RunConfig"
        ):
            tma.run_all(configs)
    train = tma.load(config.dataset, split="train")
    monkeypatch.setattr(
        data, "load", lambda name, *, split, **_: train if split == "train" else train.select([])
    )
    with pytest.raises(DataError, match=r"has .* training and 0 test instances; expected at least"):
        tma.run(config)


SCRIPT = """
import json, sys, tma
from tma.runs.config import RunConfig
run = tma.run(RunConfig.from_json(json.loads(sys.argv[1])))
print(json.dumps({"folder": str(run.folder), "final": run.losses["loss"].iloc[-1]}))
"""


def started(config: RunConfig, prelude: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", prelude + SCRIPT, json.dumps(config.to_json())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_train_one_run_once(config: RunConfig) -> None:
    config = replace(config, seed=11, order="tma_rt")
    ended = [p.communicate(timeout=600) for p in [started(config), started(config)]]
    answers = [json.loads(out) for out, _ in ended]
    assert answers[0] == answers[1]
    # Only the process that trains draws a bar.
    assert sorted("step/s" in err for _, err in ended) == [False, True]


KILLED_WHILE_STORING = """
import os, signal, sys
import pandas as pd
write = pd.DataFrame.to_parquet
def stop(self, path, **options):
    write(self, path, **options)
    os.kill(os.getpid(), signal.SIGKILL)
pd.DataFrame.to_parquet = stop
"""


@pytest.mark.parametrize("place", ["training", "storing"])
def test_a_killed_run_is_not_taken_for_a_finished_one(config: RunConfig, place: str) -> None:
    seed = {"training": 12, "storing": 13}[place]
    config = replace(config, seed=seed, order="random", limit=40, batch_size=1, eval_every=1)
    process = started(config, KILLED_WHILE_STORING if place == "storing" else "")
    assert process.stderr is not None
    if place == "training":
        while "step/s" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    run = tma.run(config)
    assert run.manifest["steps"] == 40
    assert {p.name for p in run.folder.iterdir()} == FINISHED


def test_dropout_follows_the_seed(config: RunConfig, tokenizer: Any, tmp_path: Path) -> None:
    gpt2(tmp_path, tokenizer)
    config = replace(config, model=str(tmp_path), learning_rate=1e-2)
    first = tma.run(config)
    before = first.losses
    (first.folder / "manifest.json").unlink()
    assert tma.run(config).losses.equals(before)
    assert not tma.run(replace(config, seed=1)).losses.equals(before)


def test_the_trained_model_can_be_kept(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    config = replace(config, seed=9, precision="fp32")
    without = tma.run(config)
    assert not (without.folder / "model").exists()
    written = (without.folder / "manifest.json").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(RunExecutor, "_train", stop)
        with pytest.raises(KeyboardInterrupt):
            tma.run(config, save_model=True)
    again = tma.run(config)  # what is there stays until the new model is
    assert (again.folder / "manifest.json").stat().st_mtime_ns == written
    run = tma.run(config, save_model=True)
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    from tma.train.encode import encode
    from tma.train.evaluate import response_losses

    rows = encode(tma.load(config.dataset, split="test"), tokenizer, config.max_tokens)
    final = run.losses[run.losses["step"] == run.manifest["steps"]]["loss_sum"]
    found = response_losses(model, rows, config.micro_tokens, "fp32")
    assert found.tolist() == pytest.approx(final.tolist(), rel=1e-5)
