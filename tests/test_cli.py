from __future__ import annotations

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
