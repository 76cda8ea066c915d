"""The parameters of a notebook, and the settings of the runs that follow from them.

Chapters 1 to 3 compare orders of one random sample of N instances, the others what TMA takes out of
a larger pool; each seed draws both. So orders are compared on the same instances, and a run that
two chapters need is trained once.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tma.config import (
    BUILT_IN_DATA,
    FOLDS,
    SCALES,
    STRICT,
    Positive,
    Scale,
    expanded,
    refusing,
)
from tma.errors import ParameterError, check_choice, check_count, choices, wrong
from tma.runs.config import RunConfig

if TYPE_CHECKING:
    from datasets import Dataset


@refusing
@dataclass(frozen=True, config=STRICT)
class StudyConfig:
    """The parameters that all notebooks share, and what follows from them."""

    model: str
    """Preset (llama, gemma, qwen), hub id, or folder."""
    scale: str
    """pocket, study, or paper."""
    dataset: str
    """Known name, hub id, file, or folder."""
    seeds: Positive
    """Number of seeds, 0, 1, …, of every comparison."""
    steps: Positive
    """Training steps wanted."""
    output_dir: str
    """Folder for the figures and tables."""
    reward_model: str | None = None
    """Folder or hub id of a model that scores answers; None: none does."""
    test_dataset: str | None = None
    """Known name, hub id, file, or folder of which every row tests; None: a part of `dataset`."""
    encoder: str | None = None
    """Embedding model (see `tma.encoders.find_encoder`); None: the paper's."""
    pool: Positive | None = None
    """Instances that a seed draws, from which TMA chooses; None: the scale's own."""
    test_limit: Positive | None = None
    """Most test instances; None: the scale's own, or all of a test_dataset."""
    answers: bool = False
    """Whether runs in random order answer the test prompts, at `checkpoints`."""

    @model_validator(mode="after")
    def _check_names(self) -> StudyConfig:
        check_choice("scale", self.scale, tuple(SCALES))
        _ = self.sampled("random"), self.pooled("random")  # which refuse names that do not exist
        return self

    @property
    def base(self) -> Scale:
        """What the scale sets."""
        return SCALES[self.scale]

    @property
    def limit(self) -> int:
        """N, training instances of an order."""
        return self.steps * self.base.batch_size

    @property
    def folds(self) -> int:
        """How many folds of its dataset the seeds test in turn; 0: all test the same instances."""
        own = self.test_dataset is None and self.dataset.partition(":")[0] in FOLDS
        return (self.base.folds or 0) if own else 0

    @property
    def is_published(self) -> bool:
        """Whether its runs are those of the published study, which chapters read and never make."""
        base = self.base
        planned = (self.dataset, self.steps) == (base.dataset, base.steps)
        own = (self.test_dataset, self.encoder, self.pool, self.test_limit) != (None,) * 4
        return base.made_before and planned and not own and self.model in base.models

    @property
    def out(self) -> Path:
        """The output folder, made when first asked for; refused if it cannot be written."""
        folder = expanded(self.output_dir)
        try:
            if not self.output_dir:  # else the folder where one works
                raise ValueError("it has no name")
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, ValueError) as error:  # a null byte in a name is a ValueError
            expected = f"a folder that can be written ({getattr(error, 'strerror', error)})"
            raise wrong("output_dir", self.output_dir, expected) from error
        return folder

    @property
    def doubling(self) -> tuple[int, ...]:
        """Steps 0, 1, 2, 4, … and the last, whose loss is always taken: most happens early."""
        return (0, *(2**k for k in range((self.steps - 1).bit_length())), self.steps)

    @property
    def early(self) -> tuple[int, ...]:
        """Steps at which the share of the whole fall is shown."""
        return tuple(step for step in (1, 2, 4, 8) if step < self.steps)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps at which the test prompts are answered: doubling ones, and every quarter."""
        quarters = (round(self.steps * k / 4) for k in range(5))
        return tuple(sorted({*self.doubling, *quarters}))

    def sampled(self, order: str, **changes: Any) -> list[RunConfig]:
        """Return the run settings of an order of a random sample of N instances, one a seed."""
        settings: dict[str, Any] = {"eval_every": self.base.sampled_every, "pool": self.limit}
        # Of few single instances, cluster order would hardly differ from random order. Chapter 1
        # compares no orders.
        if self.base.task_size is not None and not self.answers:
            tested = (self.base.per_task or (None, None))[1]
            settings |= {"pool_by": "task", "per_task": (self.base.task_size, tested)}
        if order == "random" and self.answers:
            settings |= {"generate_at": self.checkpoints, "reward_model": self.reward_model}
        return self._configs(order, **settings | changes)

    def pooled(self, order: str, **changes: Any) -> list[RunConfig]:
        """Return the run settings of an order of N instances out of a larger pool, one a seed."""
        settings: dict[str, Any] = {"pool": self.pool or self.base.pool}
        if self.base.pooled_per_task is not None:
            settings["per_task"] = self.base.pooled_per_task
        if order.startswith("tma_"):
            settings["exact_limit"] = True
        return self._configs(order, **settings | changes)

    def _configs(
        self, order: str, *, seeds: range | None = None, **changes: Any
    ) -> list[RunConfig]:
        settings = {"dataset": self.dataset, "limit": self.limit, "eval_at": self.doubling}
        if self.test_dataset is not None:  # every row of it, unless it is said otherwise
            settings["test_limit"] = None
        own = {name: getattr(self, name) for name in ("test_dataset", "encoder", "test_limit")}
        settings |= {name: value for name, value in own.items() if value is not None}
        configs = [
            RunConfig.at(self.scale, order=order, model=self.model, seed=seed, **settings | changes)
            for seed in (range(self.seeds) if seeds is None else seeds)
        ]
        depends = any(config.method.seeded for config in configs)
        return configs if depends else configs[:1]

    def suits(self, changes: Mapping[str, Any]) -> bool:
        """Return whether the study's data can have such settings of an arm."""
        if "twins" in changes:
            return self.dataset in BUILT_IN_DATA and self.test_dataset is None
        return "by" not in changes or self.test_dataset is None

    def half_rounds(self, tests: int) -> int:
        """Return how many rounds half of an order takes at least, with so many test instances."""
        return -(-((self.limit + 1) // 2) // tests)

    def kinds(self, train: Dataset) -> tuple[str, ...]:
        """Return how training and test data is split: with labels, if it has tasks, and without."""
        if not any(train["task"]):
            return ("without labels",)
        return ("with labels", "without labels") if self.suits({"by": None}) else ("with labels",)

    def check_tasks(self, train: Dataset) -> None:
        """Refuse data with which a chapter has no orders of tasks to compare."""
        tasks, step = {*train["task"]}, self.base.batch_size
        without = sum(not task for task in train["task"])
        if without or len(tasks) < 2 or len(train) <= step:
            raise ParameterError(
                f"dataset={self.dataset!r} gives {len(train)} training instances of {len(tasks)} "
                f"tasks, {without} without a task; this chapter compares orders of tasks step by "
                f"step, and needs a task for each, two tasks and more than the {step} instances of "
                "one step. Give such data, or run chapters 1, 4 and 5, which need no tasks."
            )


def parameters(
    *,
    model: str | None,
    scale: str,
    dataset: str | None,
    test_dataset: str | None = None,
    seeds: int | None,
    steps: int | None,
    encoder: str | None = None,
    pool: int | None = None,
    test_limit: int | None = None,
    output_dir: str,
    reward_model: str | None = None,
    early: bool = False,
    least_steps: int = 1,
) -> StudyConfig:
    """Return a notebook's checked parameters; call it in the first cell after them.

    A model, dataset, seeds or steps of None are the scale's own. `early` is for chapter 1, which
    takes a scale's `early_steps`, asks for answers, and alone has the parameter `reward_model`.

    Raises:
        ParameterError: a value cannot be used, or the notebook has no parameter of a name given.
    """
    given: dict[str, Any] = {"model": model, "scale": scale, "dataset": dataset}
    given |= {"test_dataset": test_dataset, "seeds": seeds, "steps": steps}
    given["output_dir"] = output_dir
    _check_injected(given | ({"reward_model": reward_model} if early else {}))
    check_choice("scale", scale, tuple(SCALES))
    base = SCALES[scale]
    length = base.early_steps if early else base.steps
    usual = {"model": base.model, "dataset": base.dataset, "seeds": base.seeds, "steps": length}
    given |= {name: value for name, value in usual.items() if given[name] is None}
    check_count("steps", given["steps"], least_steps)
    # Where chapter 1 is no longer than the others, all share its runs.
    answers = early or base.early_steps == base.steps
    study = StudyConfig(**given, reward_model=reward_model, answers=answers)
    _ = study.out  # refused now, and not after all training
    return study


def _check_injected(given: Mapping[str, Any]) -> None:
    """Refuse parameters that papermill injects in vain: of an unknown name it only warns."""
    injected = "".join(cell for cell in _cells() if cell.startswith("# Parameters\n"))
    for node in ast.parse(injected).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name, value = node.targets[0].id, ast.literal_eval(node.value)
        if name not in given:
            raise wrong("parameter name", name, choices(list(given), name))
        if given[name] != value:
            raise ParameterError(
                f"{name}={value!r} was given, but the notebook goes on with "
                f"{name}={given[name]!r}: the cell of its own parameters has lost its tag "
                "`parameters`, and ran after those given. Put the tag back."
            )


def _cells() -> list[str]:
    """Return the cells of the notebook that have run."""
    ipython = sys.modules.get("IPython")  # loaded in every notebook
    shell = None if ipython is None else ipython.get_ipython()
    return [] if shell is None else list(shell.user_ns["In"])
