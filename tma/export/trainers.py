"""What each trainer must be set to, so that it keeps an order; checked against its source.

`[…]` in a configuration is filled in by `tma.export`; MODEL and TEMPLATE are the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tma.errors import check_choice, wrong
from tma.export import rows

UNSAFE = {
    "verl": "its SFT trainer (0.9.1) makes a DistributedSampler with shuffle=True and drop_last="
    "True, and no setting changes that",
    "open-instruct": "finetune.py (August 2026) shuffles the dataset and again in the data loader, "
    "and no setting changes that",
    "torchtune": "its recipes (0.6.1) keep the sequence with shuffle: False, but drop the last "
    "incomplete batch of every epoch, and no setting changes that; on several GPUs rows are "
    "repeated to divide evenly",
    "ms-swift-megatron": "ms-swift's Megatron path (4.6.0) keeps the sequence with "
    "train_dataloader_shuffle false, but drops the last incomplete batch of every epoch, and no "
    "setting changes that",
}
"""Trainers that do not train on every row of an order in its sequence, and why."""

_HEAD = """\
# {command}
# Keeps an order of {count} rows; checked against {checked}.
# receipt.json says which rows, in which order; changed.jsonl which ones do not come whole, or once.
# Model, learning rate and the like are yours to add.
"""

TRL = """\
# In Python: trl.SFTConfig with what follows, and before trainer.train()
#   tma.OrderGuard("receipt.json").watch(trainer)
model_name_or_path: MODEL
output_dir: out
datasets:  # one; several are joined
  - path: json
    data_files: train.jsonl
streaming: false  # a streamed dataset ignores train_sampling_strategy
train_sampling_strategy: sequential  # else the sampler shuffles, whatever shuffle_dataset says
shuffle_dataset: false  # true shuffles before the sampler
packing: false  # bfd sorts rows by length; wrapped keeps them in sequence, but cuts them
max_length: {max_length}  # longer rows are cut; rows with no token left to train on are dropped
per_device_train_batch_size: {batch_size}  # times processes: if that leaves a rest, under DDP ...
dataloader_drop_last: false  # ... the first rows come twice; true would drop the rest
ignore_data_skip: false  # true: a resumed epoch begins again
"""

LLAMA_FACTORY = """\
model_name_or_path: MODEL
template: TEMPLATE
stage: sft
do_train: true
output_dir: out
dataset_dir: .  # with dataset_info.json
dataset: tma  # one; several are mixed
mix_strategy: concat  # interleaving draws
disable_shuffling: true  # else the sampler shuffles
streaming: false  # a streamed dataset is shuffled in a buffer
val_size: 0.0  # a split is drawn, and shuffles what is left
packing: false  # a knapsack sorts rows by length
neat_packing: false  # turns packing on
cutoff_len: {max_length}  # longer rows are cut
overwrite_cache: true  # no rows of an earlier order
per_device_train_batch_size: {batch_size}  # times processes: if that leaves a rest, under DDP ...
gradient_accumulation_steps: 1
dataloader_drop_last: false  # ... the first rows come twice; true would drop the rest
ignore_data_skip: false  # true: a resumed epoch begins again
"""

DATAFLEX = (
    LLAMA_FACTORY
    + """\
train_type: dynamic_reorder  # its sampler never shuffles
components_cfg_file: components.yaml
component_name: sorting  # by score, the place in the order; train.jsonl is in that order already
warmup_step: {update}  # steps that the first rows make
update_step: {update}  # steps until the next rows are handed out
update_times: 0  # one pass over the rows an epoch; the last batch is filled up with the first rows
# Do not resume: the order would begin again.
"""
)

COMPONENTS = """\
reorders:
  sorting:
    name: sorting
    params:
      kind: static
      pattern: sorting
      apply_at: raw  # before rows are dropped or cut
      polarity: higher_later
      ascending: true
      window_size: 0  # more shuffles within windows
      score_source: precomputed
      score_params:
        score_field: score
"""

AXOLOTL = """\
base_model: MODEL
output_dir: out
datasets:  # one; several are joined
  - path: train.jsonl
    ds_type: json
    type: chat_template
    field_messages: messages
chat_template: tokenizer_default
dataset_prepared_path: prepared-{digest}  # rows are cached by settings: each order has a folder
curriculum_sampling: true  # else the sampler shuffles
shuffle_merged_datasets: false
shuffle_before_merging_datasets: false
val_set_size: 0.0  # a split is drawn
dataset_exact_deduplication: false
sample_packing: false  # true only with sample_packing_sequentially: true; drops the last batch
group_by_length: false  # sorts by length
sequence_len: {max_length}
excess_length_strategy: truncate  # the default drops longer rows
micro_batch_size: {batch_size}  # times processes: if that leaves a rest, under DDP ...
dataloader_drop_last: false  # ... the first rows come twice; true would drop the rest
"""

MS_SWIFT = """\
model: MODEL
output_dir: out
dataset:  # one; several are joined
  - train.jsonl
dataset_shuffle: false  # shuffles when loading
train_dataloader_shuffle: false  # shuffles when training
split_dataset_ratio: 0  # a split is drawn
streaming: false  # a streamed dataset is shuffled in a buffer
strict: true  # false: a row that fails is dropped, ...
lazy_tokenize: false  # ... or a random row takes its place
packing: false  # bins rows by length
group_by_length: false  # sorts by length
max_length: {max_length}
truncation_strategy: right  # the default, delete, drops longer rows
per_device_train_batch_size: {batch_size}
dataloader_drop_last: false  # true drops the last incomplete batch
"""


Rest = Literal["filled", "always filled", "dropped"]


@dataclass(frozen=True)
class Trainer:
    """How rows are written for a trainer, and how it is set."""

    checked: str
    """Versions against whose source the settings were checked."""
    command: str
    row: Callable[..., dict[str, Any]]
    files: dict[str, str]
    """Configurations by file name; the first is the command's."""
    rest: Rest = "filled"
    """Where rows do not divide evenly: the last batch is filled up with the first rows, by several
    processes or always; or the rows left over when processes share them are dropped."""

    def settings(self, **given: object) -> dict[str, str]:
        """Return the text of each configuration."""
        head = _HEAD.format(command=self.command, checked=self.checked, **given)
        first = next(iter(self.files))
        filled = {name: text.format(**given) for name, text in self.files.items()}
        return filled | {first: head + filled[first]}


TRAINERS = {
    "trl": Trainer(
        "trl 1.16.0, transformers 5.23.0", "trl sft --config trl.yaml", rows.trl, {"trl.yaml": TRL}
    ),
    "llama-factory": Trainer(
        "llamafactory 0.9.5",
        "llamafactory-cli train llama_factory.yaml",
        rows.llama_factory,
        {"llama_factory.yaml": LLAMA_FACTORY},
    ),
    "axolotl": Trainer(
        "axolotl 0.19.0", "axolotl train axolotl.yaml", rows.messages, {"axolotl.yaml": AXOLOTL}
    ),
    "ms-swift": Trainer(
        "ms-swift 4.6.0",
        "swift sft ms_swift.yaml",
        rows.messages,
        {"ms_swift.yaml": MS_SWIFT},
        rest="dropped",
    ),
    "dataflex": Trainer(
        "dataflex 1.1.0, llamafactory 0.9.5",
        "dataflex-cli train dataflex.yaml",
        rows.llama_factory,
        {"dataflex.yaml": DATAFLEX, "components.yaml": COMPONENTS},
        rest="always filled",
    ),
}


def check_trainer(name: str, *others: str, setting: str = "trainer") -> None:
    """Refuse a trainer that is unknown, or cannot keep an order; `others` are known, too."""
    if name in UNSAFE:
        raise wrong(setting, name, f"one that keeps an order: {UNSAFE[name]}")
    check_choice(setting, name, [*others, *TRAINERS])


def dataset_info(written: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return LLaMA-Factory's description of the rows, for `dataset_info.json`."""
    if "conversations" in written[0]:
        own = {name: name for name in ("system", "tools")}
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
        tags |= {"assistant_tag": "assistant", "observation_tag": "observation"}
        tags |= {"function_tag": "function_call", "system_tag": "system"}
        columns = {"messages": "conversations", **own}
        found = {"formatting": "sharegpt", "columns": columns, "tags": tags}
    else:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        more = ("system", "history")
        columns |= {name: name for name in more if any(name in row for row in written)}
        found = {"formatting": "alpaca", "columns": columns}
    return {"tma": {"file_name": "train.jsonl", **found}}
