"""The parameters of a notebook, and the runs that the chapters share.

Chapters 1 to 3 compare orders of one random sample: each seed draws N instances, and every order
arranges just these. Chapter 4 compares what TMA takes out of a larger pool, which each seed draws
too. So every order has one run a seed, orders are compared on the same instances, and a run that
two chapters need is trained once.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tma.config import RunConfig, own_dataset
from tma.errors import ParameterError, check_choice, check_count, choices, wrong
from tma.method import SHUFFLED
from tma.names import check_dataset, check_model
from tma.scales import SCALES, Scale

Floats = NDArray[np.float32]


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

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, tuple(SCALES))
        check_model(self.model, tuple(SCALES[self.scale].models))
        check_dataset(self.dataset)
        check_count("seeds", self.seeds, 1)
        check_count("steps", self.steps, 1)
        if self.reward_model is not None:
            check_model(self.reward_model, (), "reward_model")
        if not isinstance(self.output_dir, str) or Path(self.output_dir).is_file():
            raise wrong("output_dir", self.output_dir, "the name of a folder")

    @property
    def base(self) -> Scale:
        """What the scale sets."""
        return SCALES[self.scale]

    @property
    def limit(self) -> int:
        """N, training instances wanted of an order."""
        return self.steps * self.base.batch_size

    @property
    def out(self) -> Path:
        """The output folder, made when first asked for."""
        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def sampled(self, order: str, **changes: Any) -> list[RunConfig]:
        """Return the run settings of an order of a random sample of N instances, one a seed.

        The runs in random order answer the test prompts too.
        """
        pool = self.limit if self.base.pool else None
        asked: dict[str, Any] = {"pool": pool}
        if order == "random":
            asked |= {"generate_at": self.checkpoints, "reward_model": self.reward_model}
        return self._configs(order, asked | changes)

    def pooled(self, order: str, **changes: Any) -> list[RunConfig]:
        """Return the run settings of an order of N instances out of a larger pool, one a seed.

        The last round of TMA is cut, so that every order has as many instances.
        """
        asked: dict[str, Any] = {"pool": self.base.pool}
        if order.startswith("tma_"):
            asked["exact_limit"] = True
        return self._configs(order, asked | changes)

    def blocks(self, tests: int, instances: int) -> list[str]:
        """Return the names of consecutive blocks of rounds, each large enough for N instances.

        Args:
            tests: test instances. Where many want the same training instance, a round holds but
                half as many: blocks are as wide as that needs.
            instances: training instances; the blocks are as many as they surely fill, and at most
                those of the scale.

        Raises:
            ParameterError: there are too few training instances for two blocks.
        """
        width = -(-2 * self.limit // tests)
        number = min(
            self.base.blocks, min(instances, self.base.pool or instances) // (width * tests)
        )
        if number < 2:
            needed = f"{instances} training instances; expected {2 * width * tests} at least"
            raise ParameterError(
                f"dataset={self.dataset!r} has {needed} for two blocks of rounds. Lower steps, or "
                "give more data."
            )
        return [f"tma_rounds[{k * width}:{(k + 1) * width}]" for k in range(number)]

    def thresholds(self, X: Floats, Y: Floats) -> list[float]:
        """Return the similarities from which training instances count as near-duplicates.

        Args:
            X: (n, d) unit embeddings of the training instances.
            Y: (m, d) unit embeddings of the test instances.

        Returns:
            Falling cosine similarities: a share `left_out` of the scale is at least as similar to
            a test instance as its threshold, as near as three decimals allow.
        """
        from tma.similarity import row_distances

        nearest = -row_distances(X, Y, "cosine_min")
        found = np.quantile(nearest, [1 - share for share in self.base.left_out])
        return [round(float(threshold), 3) for threshold in found]

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps at which the test prompts are answered: 0, doubling steps, and the last."""
        doubling = (2**k for k in range(self.steps.bit_length()))
        return (0, *(step for step in doubling if step < self.steps), self.steps)

    @property
    def ends(self) -> dict[str, Any]:
        """Changes by which a run is evaluated before and after training alone."""
        return {"eval_at": (), "eval_every": self.steps}

    def _configs(self, order: str, changes: Mapping[str, Any]) -> list[RunConfig]:
        settings: dict[str, Any] = {
            "model": self.model,
            "dataset": self.dataset,
            "steps": self.steps,
            "eval_at": self.checkpoints,
        }
        made = [
            RunConfig.at(self.scale, order=order, seed=seed, **(settings | dict(changes)))
            for seed in range(self.seeds)
        ]
        drawn = order in SHUFFLED or (made[0].pool is not None and made[0].select in SHUFFLED)
        return made if drawn else made[:1]


PARAMETERS = ("model", "scale", "dataset", "seeds", "steps", "output_dir")
"""Names of the parameters of every notebook."""


def study_settings(namespace: Mapping[str, Any], *more: str) -> StudyConfig:
    """Return a notebook's checked parameters; call it in the first cell after them.

    Args:
        namespace: the notebook's `globals()`. Papermill only warns of a parameter that the
            notebook does not know; here such a name is refused.
        more: names of parameters that not every notebook has, such as reward_model.

    Raises:
        ParameterError: a name or a value cannot be used.
    """
    known = (*PARAMETERS, *more)
    for name in _injected(namespace.get("In", ())):
        if name not in known:
            raise wrong("parameter name", name, choices(known, name))
    values: dict[str, Any] = {name: namespace.get(name) for name in known}
    scale = values["scale"]
    check_choice("scale", scale, tuple(SCALES))
    values["dataset"] = own_dataset(scale, values["dataset"])
    for name in ("steps", "seeds"):
        if values[name] is None:
            values[name] = getattr(SCALES[scale], name)
    return StudyConfig(**values)


def _injected(cells: Sequence[str]) -> list[str]:
    """Return the names that papermill's cell assigns, from the sources of the cells that ran."""
    own = [cell for cell in cells if cell.startswith("# Parameters\n")]
    found = [node for cell in own for node in ast.walk(ast.parse(cell))]
    return [n.id for n in found if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
