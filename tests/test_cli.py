from __future__ import annotations

import json
from pathlib import Path

import pytest

from tma import cli


def test_a_run_is_trained_and_listed(
    cache: Path, tiny_model: Path, dataset_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--order", "tma_min", "--model", str(tiny_model), "--set", f"dataset={dataset_file}"]
    assert cli.main(["train", *given, "--set", "steps=2", "--set", "batch_size=8"]) == 0
    folder, loss = capsys.readouterr().out.splitlines()
    assert Path(folder, "manifest.json").is_file()
    assert loss.startswith("test loss 10.")
    assert cli.main(["runs"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith(Path(folder).name)]
    assert line.split()[1] == "finished"
    assert f"{float(loss.split()[2]):.4f}" in line
    assert line.endswith(f"tma_min, {tiny_model}, {dataset_file}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--order", "nearest_first"], "order='nearest_first'"),
        (["--order", "random", "--set", "step=2"], "--set step=2 cannot be used"),
        (["--order", "random", "--set", "batch_size=none"], "batch_size='none'"),
        (["--order", "random", "--set", "seed=3"], "--set seed=3 cannot be used; write --seed 3"),
        (["--order", "random", "--set", "model=x"], "write --model x instead"),
        (["--order", "random", "--set", "generate_at=3"], "generate_at=3 cannot be used"),
        (["--order", "random", "--set", "compile=False"], "compile='False' cannot be used"),
        (["--order", "random", "--state-minutes", "-1"], "state_minutes=-1.0"),
        (["--order", "random", "--set", "dataset="], "dataset='' cannot be used"),
        (["--order", "random", "--model", "lama"], "did you mean llama?"),
        (["--order", "random", "--set", "steps=2", "--set", "limit=5"], "steps=2 and limit=5"),
    ],
)
def test_wrong_arguments_end_with_one_message(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("ParameterError: ")
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("cache")
def test_an_interrupted_command_says_how_to_go_on(
    tiny_model: Path,
    dataset_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tma.train import loop as train

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    given = ["--order", "tma_max", "--model", str(tiny_model), "--set", f"dataset={dataset_file}"]
    given += ["--set", "steps=2", "--set", "batch_size=8"]
    with monkeypatch.context() as patched:
        patched.setattr(train._Loop, "step", stop)
        assert cli.main(["train", *given]) == 130
    assert "the same command goes on from the last saved state" in capsys.readouterr().err
    assert "the same call goes on from the beginning" in caplog.text
    assert cli.main(["train", *given]) == 0


def test_one_odd_run_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMA_CACHE", str(tmp_path))
    settings = {"order": "random", "model": "gone/and/away", "dataset": "gone.jsonl"}
    failed = {"error": "step 3: loss is nan", "step": 2, "loss": 1.5}
    for name, files in {
        "a": {"config.json": "{"},
        "b": {"config.json": json.dumps(settings), "manifest.json": '{"steps": '},
        "c": {"config.json": json.dumps(settings), "manifest.json": '{"steps": 3}'},
        "d": {"config.json": json.dumps(settings), "failed.json": json.dumps(failed)},
        "e": {"config.json": json.dumps(settings)},
    }.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / "runs" / name / file).write_text(text)
    assert cli.main(["runs"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[1:]] == [
        "a damaged - - -, -, -",
        "b damaged - - random, gone/and/away, gone.jsonl",
        "c damaged - - random, gone/and/away, gone.jsonl",
        "d failed 2 1.5000 random, gone/and/away, gone.jsonl: step 3: loss is nan",
        "e interrupted - - random, gone/and/away, gone.jsonl",
    ]
