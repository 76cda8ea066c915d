"""What an order of a dataset will do, before any GPU is spent on it: figures, and what to mend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from tma.arrange import findings
from tma.arrange.audit_rows import RowsAudit, of_rows
from tma.arrange.receipt import Arranged, arrange_dataset
from tma.arrange.rounds import Inputs
from tma.arrange.spec import Method
from tma.embed import Text, embed_pair
from tma.encoders import AnyEncoder, ReadyRows
from tma.errors import check_count, wrong

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LISTED = 100
"""Most first rows, and most badly covered test rows, that are listed."""


@dataclass(frozen=True, eq=False)
class Audit(RowsAudit):
    """What an order of a dataset will do; `print(audit)` shows it as a table.

    In each table `row` numbers the training set or, as `test_row`, the test set; `id`, `place` (in
    the user's file) and texts stand beside it.
    """

    encoder: str
    """Name and version of the embedding model."""
    embedded: str
    """What it was given of each instance, in words."""
    warnings: tuple[str, ...]
    """What a reader must know, in sentences."""
    first_rows: pd.DataFrame
    """The first 100 rows of the order: `round`, `test_row` that is nearest, `similarity`."""
    leaks: pd.DataFrame
    """As `tma.leaks` finds them among the rows to choose from."""
    duplicates: pd.DataFrame
    """Rows of the order like an earlier one, `of`: equal content, or near, with the `cosine`."""
    badly_covered: pd.DataFrame
    """The 100 test rows with the lowest `similarity` of their nearest row in the order."""
    truncated: pd.DataFrame
    """Texts of the order and of the test set (`set`) cut by the encoder or at max_tokens (`by`)."""
    checked: Mapping[str, Mapping[str, int]]
    """What may cut texts → set → texts that were looked at; an encoder that cannot tell is not in
    it."""
    dropped: pd.DataFrame
    """Rows that were not read: `set`, `place`, `reason`."""
    groups: Sequence[str | None]
    """(k,) the task of each row of the order, else its source dataset."""

    def table(self) -> list[tuple[str, str]]:
        """Return the figures in words, (name, value)."""
        equal = int((self.duplicates["kind"] == "equal").sum())
        near = f"{len(self.duplicates) - equal:,} near (cosine ≥ {findings.ALIKE})"
        if len(self.order) > findings.COMPARED:
            near += f" in the first {findings.COMPARED:,}"
        return [
            *super().table(),
            ("training rows that leak", f"{len(self.leaks):,} hold a test text"),
            ("duplicates in the order", f"{equal:,} equal, {near}"),
            *((f"truncated by {by}", self._cut(by)) for by in ("encoder", "max_tokens")),
            ("rows not read", f"{len(self.dropped):,}"),
            ("embedded", f"{self.embedded}"),
            ("encoder", self.encoder),
        ]

    def _cut(self, by: str) -> str:
        if by not in self.checked:
            return "not known" if by == "encoder" else "not asked"
        found = self.truncated[self.truncated["by"] == by]["set"].value_counts()
        parts = (f"{found.get(s, 0):,} of {n:,} {s} texts" for s, n in self.checked[by].items())
        return ", ".join(parts)

    def __str__(self) -> str:
        told = (fill(f"! {text}", 80, subsequent_indent="  ") for text in self.warnings)
        return "\n".join([super().__str__(), *told])

    def summary(self) -> dict[str, Any]:
        """Return the figures as values for JSON."""
        low, middle, high = np.quantile(self.coverage, (0, 0.5, 1)).tolist()
        kinds = {kind: int((self.duplicates["kind"] == kind).sum()) for kind in ("equal", "near")}
        cut = {
            by: {
                s: int(((self.truncated["by"] == by) & (self.truncated["set"] == s)).sum())
                for s in sets
            }
            for by, sets in self.checked.items()
        }
        return {
            "order": self.method.name,
            "rows": len(self.order),
            "of": self.rows,
            "left_out": self.left_out,
            "near_rounds": list(self.near_sizes),
            "far_rounds": list(self.far_sizes),
            "coverage": {"min": low, "median": middle, "max": high},
            "test_rows": len(self.coverage),
            "test_rows_nearest_to_none": int((self.served == 0).sum()),
            "hubs": [list(hub) for hub in self.hubs],
            "leaks": len(self.leaks),
            "duplicates": kinds,
            "truncated": cut,
            "dropped": len(self.dropped),
            "agreement": self.agreement,
            "shared": self.shared,
            "embedded": self.embedded,
            "encoder": self.encoder,
            "warnings": list(self.warnings),
        }


def audit(
    train: Dataset,
    test: Dataset,
    method: Method | str | Arranged = "tma_nft",
    *,
    encoder: AnyEncoder | None = None,
    text: Text = "both",
    other: AnyEncoder | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int | None = None,
) -> Audit:
    """Return what an order of a training set does for a test set, and what is wrong with both.

    Args:
        train: training instances, as `tma.load` gives them.
        test: test instances; prompts will do.
        method: the order by name, or with settings; what `arrange_dataset` made of these two sets
            is not made again, and has its own encoder and text.
        encoder: see `tma.encoders.find_encoder`; None: all-MiniLM-L6-v2.
        text: what is embedded of an instance, as in `tma.embed`.
        other: another encoder, to compare the orders.
        tokenizer: the model's, to find the instances of more than `max_tokens`.
        max_tokens: most tokens of prompt and response together that a trainer reads.

    Raises:
        ParameterError: as `arrange_dataset`, or only one of tokenizer and max_tokens.
    """
    if (tokenizer is None) != (max_tokens is None):
        raise wrong("max_tokens", max_tokens, "a tokenizer and a number of tokens, or neither")
    if max_tokens is not None:
        check_count("max_tokens", max_tokens, 1)
    made = method
    if not isinstance(made, Arranged):
        made = arrange_dataset(train, test, made, encoder=encoder, text=text)
    inputs, second = _embedded(made, train, test), None
    if other is not None:
        again = arrange_dataset(train, test, made.receipt.method, encoder=other, text=text)
        second = _embedded(again, train, test), again.rows
    found = of_rows(inputs, made.rows, second)
    sets = {"train": (train, made.rows), "test": (test, np.arange(len(test)))}
    cut, checked = findings.truncated(sets, made.encoder, made.receipt.text, tokenizer, max_tokens)
    return Audit(
        **vars(found),
        encoder=made.encoder.name,
        embedded=_embedded_text(made),
        warnings=tuple(_warnings(made, test)),
        first_rows=findings.first_rows(found, inputs, train, test, LISTED),
        leaks=findings.leaks(inputs, train, test),
        duplicates=findings.duplicates(inputs, made.rows, train),
        badly_covered=findings.badly_covered(found, train, test, LISTED),
        truncated=cut,
        checked=checked,
        dropped=findings.dropped(train, test),
        groups=findings.groups(train, made.rows),
    )


def _embedded(made: Arranged, train: Dataset, test: Dataset) -> Inputs:
    """Return what an order was made from, with embeddings; an order without any has none yet."""
    if made.receipt.method.embeds:
        return made.inputs
    from tma.arrange.exact_knn import unit_pair

    rows, text = made.inputs.stored, made.receipt.text
    X, Y = unit_pair(*embed_pair(train, test, made.encoder, rows=rows, text=text))
    X.check()
    return replace(made.inputs, X=X, Y=Y.float32)


def _embedded_text(made: Arranged) -> str:
    if isinstance(made.encoder, ReadyRows):
        return "not known: the rows come from files"
    return "the prompt" if made.receipt.text == "prompt" else "prompt and response"


def _warnings(made: Arranged, test: Dataset) -> Iterator[str]:
    answered = sum(map(bool, test["response"][:]))
    if made.receipt.text == "both" and answered:
        files = " (if the files hold such rows)" * isinstance(made.encoder, ReadyRows)
        yield (
            f"{answered:,} of {len(test):,} test rows are embedded with their responses{files}. If "
            "they score the model, gold answers choose its training data: a leak of its own. Embed "
            "prompts alone (text='prompt', --text prompt), or score other rows."
        )
