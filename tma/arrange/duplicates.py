"""Training rows that are nearly in the test set: the first objection to nearest-first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tma.arrange.exact_knn import BLOCK, UNIT, Embeddings, nearest_blocks, slices, unit_pair
from tma.arrange.spec import Floats, Numbers
from tma.errors import check_count, check_texts, wrong

TOLERANCE = 1e-6
"""By how much a similarity may miss a threshold and still reach it: what rounding takes off."""


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """What the test set has in common with each training row; all are (n,)."""

    nearest: Numbers
    """The test row with the highest cosine similarity, the lowest among equals."""
    cosine: Floats
    """That similarity."""
    overlap: Floats | None
    """Largest share of a test text's word n-grams that the training text holds; None: no texts."""
    duplicate: NDArray[np.bool_]
    """Whether the row is a near-duplicate by one of the two."""


def near_duplicates(
    X: Embeddings,
    Y: Embeddings,
    threshold: float = 0.95,
    *,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    ngram: int = 8,
    overlap: float = 0.5,
    device: str | None = None,
) -> NearDuplicates:
    """Find the training rows that are nearly in the test set, by embedding or word for word.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        threshold: cosine similarity from which a row is a near-duplicate, in (0, 1]; 1 finds rows
            that are equal but for rounding.
        texts: training and test texts, to compare word n-grams as well.
        ngram: words of an n-gram; a shorter text is one n-gram.
        overlap: share of a test text's n-grams from which a training row is a near-duplicate.
        device: where products are computed; None: a GPU if there is one.

    Raises:
        ValueError: embeddings, texts or thresholds that cannot be used.

    Source: this package; the paper does not look for such rows.
    """
    for name, share in (("threshold", threshold), ("overlap", overlap)):
        if not 0 < share <= 1:
            raise wrong(name, share, "a number in (0, 1]")
    check_count("ngram", ngram, 1)
    train, test = unit_pair(X, Y)
    check_texts(texts, len(train), len(test))
    parts = [
        (best, key, np.linalg.norm(block.numpy().astype(np.float64), axis=1))
        for block, best, key in nearest_blocks(train, test.float32, device=device)
    ]
    nearest, key, length = (np.concatenate(values) for values in zip(*parts, strict=True))
    of_test = np.linalg.norm(test.float32.astype(np.float64), axis=1)
    # Rows are of length 1 up to their own precision; a cosine is not.
    cosine = key / UNIT / (length * of_test[nearest])
    duplicate = cosine >= threshold - TOLERANCE
    shared = None
    if texts is not None:
        shared = ngram_overlap(*texts, ngram)
        duplicate = duplicate | (shared >= overlap)
    return NearDuplicates(nearest, cosine, shared, duplicate)


def ngram_overlap(train: Sequence[str], test: Sequence[str], n: int = 8) -> Floats:
    """Return out[i] = max over j of |G_i ∩ G_j| / |G_j|, with G a text's set of word n-grams.

    Words are in lower case, without punctuation; a text of fewer than n words is one n-gram.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    def grams(text: str) -> list[str]:
        words = re.findall(r"\w+", text.lower())
        starts = range(max(1, len(words) - n + 1)) if words else ()
        return [" ".join(words[start : start + n]) for start in starts]

    out = np.zeros(len(train))
    if not any(grams(text) for text in test):
        return out
    vectorizer = CountVectorizer(analyzer=grams, binary=True, dtype=np.float64)
    of_test = vectorizer.fit_transform(test)
    share = of_test.multiply(1 / np.maximum(of_test.sum(axis=1), 1)).T.tocsc()
    for part in slices(len(train), max(1, BLOCK // len(test))):
        held = vectorizer.transform(train[part]) @ share
        out[part] = held.max(axis=1).toarray()[:, 0]
    return out
