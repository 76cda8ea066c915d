"""The parameters of a notebook, and the runs that the chapters share.

Chapters 1 to 3 compare orders of one random sample: each seed draws N instances, and every order
arranges just these. Chapter 4 compares what TMA takes out of a larger pool, which each seed draws
too. So every order has one run a seed, orders are compared on the same instances, and a run that
two chapters need is trained once. Where a scale is too short for chapter 1, its runs are longer and
its own.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.arrange.spec import SHUFFLED
from tma.config import BUILT_IN_DATA, FOLDS, SCALES, Scale, check_dataset, check_model, expanded
from tma.errors import ParameterError, check_choice, check_count, choices, wrong
from tma.runs.config import RunConfig

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class StudyConfig:
    """The parameters that all notebooks share.

    Raises:
        ParameterError: a value cannot be used; the message names the parameter and the choices.
    """

    model: str
    """Preset (llama, gemma, qwen), hub id, or folder."""
    scale: str
    """pocket, study, or paper."""
    dataset: str
    """Known name, hub id, file, or folder."""
    seeds: int
    """Number of seeds, 0, 1, …, of every comparison."""
    steps: int
    """Training steps wanted."""
    output_dir: str
    """Folder for the figures and tables."""
    reward_model: str | None = None
    """Folder or hub id of a model that scores answers; None: none does."""
    test_dataset: str | None = None
    """Known name, hub id, file, or folder of which every row tests; None: a part of `dataset`."""
    answers: bool = False
    """Whether runs in random order answer the test prompts, at `checkpoints`."""

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, tuple(SCALES))
        check_model(self.model, tuple(SCALES[self.scale].models))
        check_dataset(self.dataset)
        if self.test_dataset is not None:
            check_dataset(self.test_dataset, "test_dataset")
        check_count("seeds", self.seeds, 1)
        check_count("steps", self.steps, 1)
        if self.reward_model is not None:
            check_model(self.reward_model, (), "reward_model")
        if not isinstance(self.output_dir, str):
            raise wrong("output_dir", self.output_dir, "the name of a folder")

    @property
    def base(self) -> Scale:
        """What the scale sets."""
        return SCALES[self.scale]

    @property
    def fewer(self) -> range:
        """Seeds of what is not a main comparison."""
        return range(min(self.seeds, self.base.fewer_seeds))

    @property
    def limit(self) -> int:
        """N, training instances wanted of an order."""
        return self.steps * self.base.batch_size

    @property
    def out(self) -> Path:
        """The output folder, made when first asked for.

        Raises:
            ParameterError: it cannot be made, or not be written.
        """
        folder = expanded(self.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            expected = f"a folder that can be written ({error.strerror})"
            raise wrong("output_dir", self.output_dir, expected) from error
        return folder

    def sampled(self, order: str, **changes: Any) -> list[RunConfig]:
        """Return the run settings of an order of a random sample of N instances, one a seed.

        Where such a sample would hold next to nothing of each task, it is one of whole tasks, cut
        to `task_size` instances each: else cluster order would be no other than random order, and
        whole tasks no other than single instances. Chapter 1 compares no orders: it needs none.
        """
        asked: dict[str, Any] = {"eval_every": self.base.sampled_every, "pool": self.limit}
        if self.base.task_size is not None and not self.answers:
            tested = (self.base.per_task or (None, None))[1]
            asked |= {"pool_by": "task", "per_task": (self.base.task_size, tested)}
        if order == "random" and self.answers:
            asked |= {"generate_at": self.checkpoints, "reward_model": self.reward_model}
        return self._configs(order, asked | changes)

    def pooled(self, order: str, **changes: Any) -> list[RunConfig]:
        """Return the run settings of an order of N instances out of a larger pool, one a seed.

        The last round of TMA is cut, so that every order has as many instances.
        """
        asked: dict[str, Any] = {"pool": self.base.pool}
        if self.base.pooled_per_task is not None:
            asked["per_task"] = self.base.pooled_per_task
        if order.startswith("tma_"):
            asked["exact_limit"] = True
        return self._configs(order, asked | changes)

    @property
    def is_published(self) -> bool:
        """Whether its runs are those of the published study, which chapters read and never make."""
        base, usual = self.base, (self.base.dataset, self.base.steps)
        own = self.test_dataset is None and (self.dataset, self.steps) == usual
        return base.made_before and own and self.model in base.models

    @property
    def folds(self) -> int:
        """How many folds of its dataset the seeds test in turn; 0: all test the same instances."""
        own = self.test_dataset is None and self.dataset.partition(":")[0] in FOLDS
        return (self.base.folds or 0) if own else 0

    def suits(self, changes: Mapping[str, Any]) -> bool:
        """Return whether the study's data can have such settings of an arm.

        Twins are of the suite alone; a test set of its own is not split from the training data.
        """
        own = self.test_dataset is not None
        if "twins" in changes:
            return self.dataset in BUILT_IN_DATA and not own
        return not ("by" in changes and own)

    def blocks(self) -> tuple[int, list[str]]:
        """Return how many instances are taken of each block of rounds, and the blocks' names.

        They follow each other from the first round on, each of the scale's `block_rounds`. Where
        the scale does not say how many instances are taken of each, they are as many as every block
        holds in every seed's pool, and N at most; and blocks are narrower where there are not two
        as wide.

        Raises:
            ParameterError: there are too few training instances for two rounds.
        """
        width, most = self.base.block_rounds, self.base.blocks
        planned = self.dataset == self.base.dataset and self.test_dataset is None
        if self.base.block_limit is not None and planned:
            return self.base.block_limit, _blocks(range(0, most * width, width), width)
        held = [self._round_sizes(seed, most * width) for seed in range(self.seeds)]
        there = min(map(len, held))
        width = min(width, there // 2)
        if not width:
            raise ParameterError(
                f"dataset={self.dataset!r} has too few training instances: its test instances take "
                "them in one round; expected two rounds at least for two blocks of rounds. Give "
                "more data, or fewer test instances."
            )
        starts = range(0, min(there // width, most) * width, width)
        size = min(sum(sizes[at : at + width]) for sizes in held for at in starts)
        return min(size, self.limit), _blocks(starts, width)

    def _round_sizes(self, seed: int, most: int) -> list[int]:
        """Return how many instances each of the first rounds takes out of a seed's pool."""
        from tma.arrange.orders import drawn
        from tma.arrange.rounds import test_centric_rounds
        from tma.data.load import load_both
        from tma.embed import embed

        [config] = [c for c in self.pooled("tma_nft") if c.seed == seed]
        train, test = load_both(config)
        pool = drawn(len(train), config.pool or len(train), seed)
        X, Y = embed(train.select(pool)), embed(test)
        # A round holds one instance a test instance at most: so many are not reached before.
        found = test_centric_rounds(X, Y, min(most * len(Y), len(pool)))
        return [len(one) for one in found[:most]]

    def half_rounds(self, tests: int) -> int:
        """Return how many rounds half of an order takes at least, with so many test instances."""
        return -(-((self.limit + 1) // 2) // tests)

    def kinds(self, train: Dataset) -> tuple[str, ...]:
        """Return how data is split, in words.

        Data with tasks is compared with labels, by which the split goes, and without; data that has
        none only without.
        """
        if not any(train["task"]):
            return ("without labels",)
        return ("with labels", "without labels") if self.suits({"by": None}) else ("with labels",)

    def check_tasks(self, train: Dataset) -> None:
        """Refuse data of which a chapter that compares orders of tasks has nothing to compare.

        Raises:
            ParameterError: an instance has no task, all have the same, or they fill one step.
        """
        without = sum(not task for task in train["task"])
        if without:
            raise ParameterError(
                f"dataset={self.dataset!r} has {without} training instances without a task; this "
                "chapter compares orders of tasks. Give data with a column of tasks; chapters 1 "
                "and 4 need none."
            )
        tasks, step = len(set(train["task"])), self.base.batch_size
        if tasks < 2 or len(train) <= step:
            raise ParameterError(
                f"dataset={self.dataset!r} gives {len(train)} training instances of {tasks} tasks; "
                f"this chapter compares orders of tasks step by step, and needs two tasks and more "
                f"than the {step} instances of one step. Give more data."
            )

    @property
    def doubling(self) -> tuple[int, ...]:
        """Steps at which the loss is taken whatever `eval_every` says, since most happens early."""
        doubling = (2**k for k in range(self.steps.bit_length()))
        return (0, *(step for step in doubling if step < self.steps), self.steps)

    @property
    def early(self) -> tuple[int, ...]:
        """Steps after which the share of the whole fall is told: the first doubling ones."""
        return tuple(step for step in (1, 2, 4, 8) if step < self.steps)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps at which the test prompts are answered: doubling ones, and every quarter.

        How steadily a metric moves has to show after the first steps too.
        """
        even = (round(self.steps * k / 4) for k in range(5))
        return tuple(sorted({*self.doubling, *even}))

    def _configs(self, order: str, changes: Mapping[str, Any]) -> list[RunConfig]:
        settings: dict[str, Any] = {
            "model": self.model,
            "dataset": self.dataset,
            "limit": self.limit,
            "eval_at": self.doubling,
        }
        if self.test_dataset is not None:
            settings["test_dataset"] = self.test_dataset
        changes = dict(changes)
        seeds = changes.pop("seeds", range(self.seeds))
        made = [
            RunConfig.at(self.scale, order=order, seed=seed, **(settings | changes))
            for seed in seeds
        ]
        return made if order in SHUFFLED or any(c.pool is not None for c in made) else made[:1]


PARAMETERS = ("model", "scale", "dataset", "test_dataset", "seeds", "steps", "output_dir")
"""Names of the parameters of every notebook."""


def study_settings(
    namespace: Mapping[str, Any], *, early: bool = False, least_steps: int = 1
) -> StudyConfig:
    """Return a notebook's checked parameters; call it in the first cell after them.

    Args:
        namespace: the notebook's `globals()`. Papermill only warns of a parameter that the
            notebook does not know; here such a name is refused.
        early: whether it is chapter 1, which takes `early_steps` steps of a scale, asks for
            answers, and has a parameter more, `reward_model`.
        least_steps: steps below which the chapter has nothing to compare.

    Raises:
        ParameterError: a name or a value cannot be used.
    """
    known = (*PARAMETERS, "reward_model") if early else PARAMETERS
    for name, value in _injected(namespace.get("In", ())):
        if name not in known:
            raise wrong("parameter name", name, choices(known, name))
        if namespace.get(name) != value:
            raise ParameterError(
                f"{name}={value!r} was given, but the notebook goes on with "
                f"{name}={namespace.get(name)!r}: the cell of its own parameters has lost its tag "
                "`parameters`, and ran after those given. Put the tag back."
            )
    values: dict[str, Any] = {name: namespace.get(name) for name in known}
    scale = values["scale"]
    check_choice("scale", scale, tuple(SCALES))
    own = {name: name for name in ("model", "dataset", "seeds", "steps")}
    own |= {"steps": "early_steps"} if early else {}
    for name, of_scale in own.items():
        if values[name] is None:
            values[name] = getattr(SCALES[scale], of_scale)
    check_count("steps", values["steps"], least_steps)
    # Where chapter 1 is no longer than the others, all share its runs.
    shared = SCALES[scale].early_steps == SCALES[scale].steps
    study = StudyConfig(**values, answers=early or shared)
    _ = study.out  # refused now, and not after all training
    return study


def _blocks(starts: range, width: int) -> list[str]:
    return [f"tma_rounds[{at}:{at + width}]" for at in starts]


def _injected(cells: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the names that papermill's cell assigns, with values, from the cells that ran."""
    own = [cell for cell in cells if cell.startswith("# Parameters\n")]
    found = [node for cell in own for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return [
        (target.id, ast.literal_eval(node.value))
        for node in found
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
