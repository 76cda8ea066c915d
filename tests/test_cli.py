from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_help_fits_a_terminal_and_needs_no_heavy_library() -> None:
    script = "import sys\nfrom tma import cli\ncli.main(['study', '--help'])\n"
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
    assert "the same command goes on from the last saved state" in capsys.readouterr().err
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
