"""Words that texts share: n-gram overlap, and the KL divergence of bigram distributions.

Words are runs of letters, digits and underscores, in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tma.rows import BLOCK

Floats = NDArray[np.float64]

SMOOTHING = 0.5
"""Added to the count of every bigram (Krichevsky and Trofimov 1981)."""
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, punctuation left out."""
    return _WORD.findall(text.lower())


def bigrams(text: str) -> list[str]:
    """Return the pairs of neighbouring words of a text; lower case, punctuation left out."""
    return [f"{first} {second}" for first, second in pairwise(words(text))]


class Bigrams:
    """Counts of word bigrams, and the KL divergence of a training set's from the test set's."""

    def __init__(self, train: Sequence[str], test: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        vectorizer = CountVectorizer(analyzer=bigrams, dtype=np.int64)
        try:
            vectorizer.fit([*train, *test])
        except ValueError as error:
            raise ValueError("X and Y hold no bigram: no text has two words.") from error
        self._train = vectorizer.transform(train)
        of_test = np.asarray(vectorizer.transform(test).sum(axis=0))[0]
        self._kinds = len(of_test)
        self._p = (of_test + SMOOTHING) / (of_test.sum() + SMOOTHING * self._kinds)
        self._negative_entropy = float((self._p * np.log(self._p)).sum())

    def rows(self, numbers: NDArray[np.int64] | None) -> Floats:
        """Return KL(T ‖ {i}) of each training text."""
        counts = self._train if numbers is None else self._train[numbers]
        totals = np.asarray(counts.sum(axis=1))[:, 0]
        gained = counts.astype(np.float64)
        gained.data = np.log(gained.data + SMOOTHING) - np.log(SMOOTHING)
        found: Floats = self._divergence(np.log(SMOOTHING) + gained @ self._p, totals)
        return found

    def prefixes(self, at: NDArray[np.int64]) -> Floats:
        """Return KL(T ‖ S) of the first rows, touching each row once."""
        stops, which = np.unique(at, return_inverse=True)
        seen = np.zeros(self._kinds)
        cross, out, start = float(np.log(SMOOTHING)), np.empty(len(stops)), 0
        for k, stop in enumerate(stops):
            new = self._train[start:stop].sum(axis=0).A1
            kinds = np.flatnonzero(new)
            before = seen[kinds]
            seen[kinds] += new[kinds]
            gained = np.log(seen[kinds] + SMOOTHING) - np.log(before + SMOOTHING)
            cross += float(self._p[kinds] @ gained)
            start = stop
            out[k] = self._divergence(cross, seen.sum())
        return out[which]

    def _divergence(self, cross: Any, total: Any) -> Any:
        """Return Σ p_T log p_T - Σ p_T log p_S, from Σ p_T log(count_S + smoothing)."""
        found = self._negative_entropy - cross + np.log(total + SMOOTHING * self._kinds)
        return np.maximum(found, 0)  # below 0 by rounding alone


def ngram_overlap(train: Sequence[str], test: Sequence[str], n: int = 8) -> Floats:
    """Return the largest share of a test text's word n-grams that each training text holds.

    Args:
        train: training texts.
        test: test texts.
        n: words of an n-gram; lower case, punctuation left out. A shorter text is one n-gram,
            one without words none.

    Returns:
        (len(train),): out[i] = max over j of |G_i ∩ G_j| / |G_j|, with G the set of n-grams.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    def grams(text: str) -> list[str]:
        said = words(text)
        whole = [" ".join(said)] if said else []
        return (
            whole
            if len(said) < n
            else [" ".join(said[k : k + n]) for k in range(len(said) - n + 1)]
        )

    vectorizer = CountVectorizer(analyzer=grams, binary=True, dtype=np.float64)
    if not any(words(text) for text in test):
        return np.zeros(len(train))
    of_test = vectorizer.fit_transform(test)
    share = of_test.multiply(1 / np.maximum(of_test.sum(axis=1), 1)).T.tocsc()
    out = np.zeros(len(train))
    step = max(1, BLOCK // len(test))
    for start in range(0, len(train), step):
        held = vectorizer.transform(train[start : start + step]) @ share
        out[start : start + step] = held.max(axis=1).toarray()[:, 0]
    return out
