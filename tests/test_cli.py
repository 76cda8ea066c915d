from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tma
from tests.conftest import circle
from tma import cli


@pytest.fixture
def arguments(cache: Path, tiny_model: Path, dataset_file: Path) -> list[str]:
    """What trains a tiny run."""
    assert cache.is_dir()
    settings = (f"dataset={dataset_file}", "steps=2", "batch_size=8")
    given = [part for setting in settings for part in ("--set", setting)]
    return ["train", "--model", str(tiny_model), *given]


def test_a_run_is_trained_and_listed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--order", "tma_min"]) == 0
    folder, loss = capsys.readouterr().out.splitlines()
    assert Path(folder, "manifest.json").is_file()
    assert loss.startswith("test loss 10.")
    assert cli.main(["runs", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in listed if line.startswith(Path(folder).name)]
    assert line.split()[1] == "finished"
    assert f"{float(loss.split()[2]):.4f}" in line
    model, dataset = arguments[2], arguments[4].partition("=")[2]
    assert line.endswith(f"tma_min, {model}, {dataset}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --order nearest_first", "ParameterError: order='nearest_first'"),
        ("train --order random --set step=2", "--set step=2 cannot be used; expected NAME=VALUE"),
        ("train --order random --set steps", "--set steps cannot be used; expected NAME=VALUE"),
        ("train --order random --set seed=3", "cannot be used; write --seed 3 instead"),
        ("train --order random --seed -3", "seed=-3 cannot be used"),
        ("train --order random --set exact_limit=False", "exact_limit='False' cannot be used"),
        ("train --order random --state-minutes -1", "state_minutes=-1.0"),
        ("train --order random --set dataset=", "dataset='' cannot be used"),
        ("train --order random --seed x", "Invalid value for '--seed'"),
        ("train", "Missing option '--order'"),
        ("arrange a.jsonl --test b.jsonl --out o --order nearst", "did you mean nearest?"),
        ("arrange a.jsonl --out o", "Missing option '--test'"),
        ("arrange pocket --test pocket --out o --limit many", "limit='many' cannot be used"),
        ("arrange pocket --test pocket --out o --limit 120%", "limit='120%' cannot be used"),
        ("arrange pocket --test pocket --out o --columns q", "columns='q' cannot be used"),
        ("arrange pocket --test pocket --out o --format verl", "expected one that keeps an order"),
        ("arrange pocket --test pocket --out tests", "out='tests' exists; expected the name of a"),
        ("audit pocket --test pocket --max-tokens 9", "--tokenizer and --max-tokens belong"),
        ("audit pocket --test pocket --out tests", "out='tests' cannot be used"),
        ("embed pocket --out rows.csv", "out='rows.csv' cannot be used; expected a file with"),
        ("describe pocket --tokenizer no/where/at/all", "tokenizer='no/where/at/all' cannot be"),
        ("study --scale big --list", "scale='big' cannot be used; expected one of: pocket"),
        ("study --jobs 0", "jobs=0 cannot be used"),
        ("study --arms 99", "arms='99' cannot be used"),
        ("learn", "No such command 'learn'"),
    ],
)
def test_wrong_arguments_end_with_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments.split(" ")) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def files(cache: Path, tmp_path: Path) -> list[str]:
    """What arranges eleven rows for two, with ready embeddings."""
    rows = [{"q": f"say {k}", "a": f"{k}", "kept": [k, None]} for k in range(10)]
    rows.append({"q": "say eleven", "a": ""})
    tests = [{"prompt": "say four"}, {"prompt": "say 70", "response": "70"}]
    for name, own in (("train.jsonl", rows), ("test.jsonl", tests)):
        text = "".join(json.dumps(row) + "\n" for row in own)
        (tmp_path / name).write_text(text, encoding="utf-8")
    np.save(tmp_path / "X.npy", circle([10 * k for k in range(10)]))
    np.save(tmp_path / "Y.npy", circle([41, 70]))
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    ready = f"{tmp_path / 'X.npy'},{tmp_path / 'Y.npy'}"
    return [train, "--test", test, "--encoder", ready, "--columns", "prompt=q,response=a"]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_data_is_arranged_and_handed_over(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ["--out", str(out), "--limit", "40%"]
    assert cli.main(["arrange", *files, *given, "--order", "tma_min"]) == 0
    assert [row["q"] for row in lines(out / "train.jsonl")] == ["say 4", "say 7", "say 5", "say 6"]
    first = lines(out / "train.jsonl")[0]
    receipt = tma.read_receipt(out / "receipt.json")
    assert first == {"q": "say 4", "a": "4", "kept": [4, None], "tma_id": receipt.ids[0]}
    order = json.loads((out / "order.json").read_text("utf-8"))
    assert order == {
        "rows": [4, 7, 5, 6],
        "places": [f"train.jsonl, line {k}" for k in (5, 8, 6, 7)],
    }
    assert (out / "audit" / "report.html").is_file()
    told, said = capsys.readouterr()
    assert told.splitlines()[0] == f"4 of 10 rows in the order tma_min: {out / 'train.jsonl'}"
    assert "rows not read                 1" in told
    assert "train.jsonl, line 11: no response" in said
    assert cli.main(["arrange", *files, *given]) == 2
    assert "exists; expected the name of a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "file"),
    [
        ("trl", "trl.yaml"),
        ("llama-factory", "llama_factory.yaml"),
        ("axolotl", "axolotl.yaml"),
        ("ms-swift", "ms_swift.yaml"),
        ("dataflex", "dataflex.yaml"),
    ],
)
def test_the_hand_over_has_the_configuration_of_the_trainer(
    trainer: str,
    file: str,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    given = ["--format", trainer, "--out", str(out), "--no-audit", "-q"]
    assert cli.main(["arrange", *files, *given]) == 0
    assert (out / file).is_file()
    assert f"{trainer}: {file}" in capsys.readouterr().out
    ids = [row["tma_id"] for row in lines(out / "train.jsonl")]
    assert tuple(ids) == tma.read_receipt(out / "receipt.json").ids
    assert not (out / "audit").exists()


def test_an_audit_is_told_as_a_table_or_as_json(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit"
    assert cli.main(["audit", *files, "--out", str(out), "-q", "--json"]) == 0
    told, said = capsys.readouterr()
    assert json.loads(told) == json.loads((out / "summary.json").read_text("utf-8"))
    assert (json.loads(told)["dropped"], said) == (1, "")
    assert cli.main(["audit", *files, "-q"]) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    assert "nearest rounds                6 of 1 to 2 rows" in table


def test_a_receipt_tells_where_the_order_was_left(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, consumed = tmp_path / "out", tmp_path / "consumed.jsonl"
    assert cli.main(["arrange", *files, "--out", str(out), "--no-audit", "-q"]) == 0
    ids = tma.read_receipt(out / "receipt.json").ids
    command = ["verify", str(out / "receipt.json"), str(consumed)]

    def consume(*seen: str) -> None:
        consumed.write_text("".join(json.dumps({"id": name}) + "\n" for name in seen))

    consume(*ids, *ids)
    assert cli.main([*command, "--epochs", "2"]) == 0
    consume(*ids[:1])
    capsys.readouterr()
    assert cli.main([*command, "--prefix"]) == 0
    assert capsys.readouterr().out == "1 row in the order of the receipt\n"
    assert cli.main(command) == 1
    consume(ids[0], ids[2], ids[1])
    assert cli.main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"position 2 of epoch 1: expected {ids[1]}" in error
    assert error.index('"say 7"') < error.index(f"got {ids[2]}") < error.index('"say 5"')
    assert cli.main(["verify", str(out / "receipt.json"), str(out / "gone.jsonl")]) == 2
    consumed.write_text("")
    assert cli.main([*command, "--prefix"]) == 2
    assert "holds no id; expected a line for each row" in capsys.readouterr().err


def test_chats_are_told_apart_by_what_the_user_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt, consumed = tmp_path / "receipt.json", tmp_path / "consumed.jsonl"
    tma.Receipt(tma.Method("random"), "", "", "", 0, ("a", "b")).save(receipt)
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"messages": [system, {"role": "user", "content": "Why?"}], "tma_id": "a"},
        {"conversations": [{"from": "human", "value": "Where?"}], "tma_id": "b"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    consumed.write_text('{"id": "b"}\n')
    assert cli.main(["verify", str(receipt), str(consumed)]) == 1
    assert "expected a ('Why?'), got b ('Where?')" in capsys.readouterr().err


def test_interrupted_data_leaves_nothing(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tma.study import audit_page

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {*tmp_path.iterdir()}
    monkeypatch.setattr(audit_page, "write_audit", stop)
    assert cli.main(["arrange", *files, "--out", str(tmp_path / "out")]) == 130
    assert {*tmp_path.iterdir()} == before
    assert "Interrupted" in capsys.readouterr().err


def test_texts_are_embedded_and_described(
    dataset_file: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.npy"
    assert cli.main(["embed", str(dataset_file), "--out", str(out), "-q"]) == 0
    assert capsys.readouterr().out == f"48 rows of 384 columns: {out}\n"
    np.testing.assert_array_equal(np.load(out), tma.embed(tma.load(dataset_file)))
    assert cli.main(["describe", str(dataset_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows read"], found["tasks"], found["duplicates"]) == (48, 6, 0)


def test_data_that_cannot_be_read_is_one_line(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "X.npy", np.full((1, 2), np.nan))
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    one, rows = str(tmp_path / "one.jsonl"), str(tmp_path / "X.npy")
    for test, status in ((str(tmp_path / "no.jsonl"), 2), (one, 1)):
        given = [one, "--test", test, "--encoder", f"{rows},{rows}"]
        assert cli.main(["audit", *given]) == status
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main(["embed", one, "--out", "/proc/no/rows.npy", "-q"]) == 1
    assert capsys.readouterr().err.endswith("No such file or directory: '/proc/no'\n")


def test_a_machine_is_looked_at_line_by_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("tma.doctor"), "CHROMIUM", ())
    monkeypatch.setenv("TMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert max(map(len, told)) <= 80
    assert "!  chromium              not found: only tests of the book's pages need it" in told
    assert "ok model hub             not asked: HF_HUB_OFFLINE is set" in told
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMA_CACHE", str(tmp_path / "file" / "cache"))
    assert cli.main(["doctor", "--json"]) == 1
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert (found["cache"]["ok"], found["cache"]["needed"]) == (False, True)
    assert "set TMA_CACHE to another folder" in found["cache"]["found"]


def test_commands_tell_their_version_and_what_they_can(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tma {tma.__version__}\n"
    assert cli.main(["runs"]) == 2
    assert {"list", "export", "import"} <= {*capsys.readouterr().err.split()}


def test_the_help_fits_a_terminal_and_needs_no_heavy_library() -> None:
    script = "import sys\nfrom tma import cli\ncli.main(['study', '--help'])\n"
    script += "for c in ('arrange', 'audit', 'verify', 'train'): cli.main([c, '--help'])\n"
    script += "print({'torch', 'pandas', 'datasets', 'transformers'} & {*sys.modules})"
    told = subprocess.check_output([sys.executable, "-c", script], text=True).splitlines()
    assert told[-1] == "set()"
    assert max(map(len, told)) <= 80
    assert {"--scale", "--arms", "--jobs", "--p3", "--export", "--list"} <= {
        word for line in told for word in line.split()
    }


def test_an_interrupted_command_says_how_to_go_on(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tma.train import loop

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    arguments += ["--order", "tma_max"]
    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "step", stop)
        assert cli.main(arguments) == 130
    assert "A run goes on from its last state" in capsys.readouterr().err
    assert cli.main(arguments) == 0


def test_one_odd_run_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMA_CACHE", str(tmp_path))
    settings = json.dumps({"order": "random", "model": "gone/and/away", "dataset": "gone.jsonl"})
    failed = {"error": "step 3: loss is nan", "step": 2, "loss": 1.5}
    for name, files in {
        "a": {"config.json": "{"},
        "b": {"config.json": settings, "manifest.json": '{"steps": '},
        "c": {"config.json": settings, "manifest.json": '{"steps": 3}'},
        "d": {"config.json": settings, "failed.json": json.dumps(failed)},
        "e": {"config.json": settings},
    }.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / "runs" / name / file).write_text(text)
    assert cli.main(["runs", "list"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[1:]] == [
        "a damaged - - -, -, -",
        "b damaged - - random, gone/and/away, gone.jsonl",
        "c damaged - - random, gone/and/away, gone.jsonl",
        "d failed 2 1.5000 random, gone/and/away, gone.jsonl: step 3: loss is nan",
        "e interrupted - - random, gone/and/away, gone.jsonl",
    ]
