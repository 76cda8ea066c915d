"""The guard in two processes, as a user would start them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import tma
from tests.export.conftest import ROWS, lines, of

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers import default_data_collator
import tma
from tma.export import guard

def train(count, batch, name):
    ids = [f"id{k}" for k in range(count)]
    rows = [{"tma_id": i, "input_ids": [k, k], "labels": [k, k]} for k, i in enumerate(ids)]
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes))
    quiet = dict(output_dir=name, report_to="none", disable_tqdm=True, save_strategy="no")
    kept = dict(train_sampling_strategy="sequential", per_device_train_batch_size=batch)
    here = dict(use_cpu=True, ddp_backend="gloo", num_train_epochs=2)
    trainer = Trainer(model, TrainingArguments(**quiet, **kept, **here), default_data_collator,
                      Dataset.from_list(rows))
    tma.OrderGuard(f"{count}.json", f"{name}.jsonl").watch(trainer)
    try:
        trainer.train()
        return "done"
    except tma.TmaError as error:
        return f"{type(error).__name__}: {error}"

told = [train(8, 2, "whole"), train(10, 3, "refused")]
guard._refuse_batches = lambda *given: None
told.append(train(10, 3, "filled"))
rank = torch.distributed.get_rank()
Path(f"rank{rank}.json").write_text(json.dumps(told))
torch.distributed.destroy_process_group()
"""


def test_rows_that_fill_up_the_batches_of_several_processes_are_caught(tmp_path: Path) -> None:
    for count in (8, 10):
        of(ROWS[:count]).save(tmp_path / f"{count}.json")
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", "script.py"]
    where = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=os.environ | where, check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    whole, refused, filled = ranks[0]
    assert whole == "done"
    assert tma.verify(tmp_path / "8.json", tmp_path / "whole.jsonl", epochs=2) == 16
    assert refused.startswith("ParameterError: per_device_train_batch_size=3 on 2 processes")
    assert "the 2 first rows, which then come twice" in refused
    assert not (tmp_path / "refused.jsonl").exists()
    assert filled.startswith("OrderError: position 11 of epoch 1: expected the end, got id0")
    assert [line["id"] for line in lines(tmp_path / "filled.jsonl")][-2:] == ["id9", "id0"]
