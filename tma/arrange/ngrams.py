"""Words that texts share: n-gram overlap, and the KL divergence of bigram distributions.

Words are runs of letters, digits and underscores, in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tma.arrange.rows import BLOCK
from tma.errors import wrong

Floats = NDArray[np.float64]

SMOOTHING = 0.5
"""Added to the count of every bigram (Krichevsky and Trofimov 1981)."""
_WORD = re.compile(r"\w+")
_NO_BIGRAM = "X and Y hold no bigram: no text has two words."


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, punctuation left out."""
    return _WORD.findall(text.lower())


def bigrams(text: str) -> list[str]:
    """Return the pairs of neighbouring words of a text; lower case, punctuation left out."""
    return [f"{first} {second}" for first, second in pairwise(words(text))]


def texts(given: object, name: str) -> Sequence[str]:
    """Return what was given as a list of texts.

    Raises:
        ParameterError: none, or something else; `name` is the argument that the error names.
    """
    found = [] if isinstance(given, str) else list(cast(Sequence[str], given))
    if not found or not all(isinstance(text, str) for text in found):
        raise wrong(name, type(given).__name__, "texts, at least one, with measure='bigram_kl'")
    return found


class Bigrams:
    """Counts of word bigrams, and the KL divergence of a training set's from each test set's.

    Every text is counted once, however many test sets there are. A test set is compared over the
    bigrams of the training texts and its own: the others change none of its numbers.
    """

    def __init__(self, train: Sequence[str], tests: Sequence[Sequence[str]]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        vectorizer = CountVectorizer(analyzer=bigrams, dtype=np.int64)
        try:
            counts = vectorizer.fit_transform([*train, *chain.from_iterable(tests)])
        except ValueError as error:
            raise ValueError(_NO_BIGRAM) from error
        ends = accumulate(map(len, tests), initial=len(train))
        self._tests = [counts[start:stop] for start, stop in pairwise(ends)]
        self._train = counts[: len(train)]
        # A row's bigrams come in the order of first use, by which a sum would depend on all texts.
        self._train.sort_indices()

    def rows(self, numbers: NDArray[np.int64] | None) -> Floats:
        """Return KL(T ‖ {i}) of each test set and training text, (tests, texts)."""
        counts = self._train if numbers is None else self._train[numbers]
        totals = np.asarray(counts.sum(axis=1))[:, 0]
        gained = counts.astype(np.float64)
        gained.data = np.log(gained.data + SMOOTHING) - np.log(SMOOTHING)
        return np.array(
            [one.divergence(np.log(SMOOTHING) + gained @ one.p, totals) for one in self._shares()]
        )

    def prefixes(self, at: NDArray[np.int64]) -> Floats:
        """Return KL(T ‖ S) of each test set and the first rows, (tests, len(at))."""
        stops, which = np.unique(at, return_inverse=True)
        totals = np.cumsum(self._train.sum(axis=1).A1)[stops - 1]
        gains = list(self._gains(stops))
        found = np.empty((len(self._tests), len(stops)))
        for out, one in zip(found, self._shares(), strict=True):
            cross = np.cumsum([np.log(SMOOTHING), *(one.p[kinds] @ gain for kinds, gain in gains)])
            out[:] = one.divergence(cross[1:], totals)
        return found[:, which]

    def _gains(self, stops: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Yield the bigrams between two stops, and by how much log(count_S + smoothing) grows."""
        seen = np.zeros(self._train.shape[1])
        for start, stop in pairwise([0, *stops]):
            new = self._train[start:stop].sum(axis=0).A1
            kinds = np.flatnonzero(new)
            before = seen[kinds]
            seen[kinds] += new[kinds]
            yield kinds, np.log(seen[kinds] + SMOOTHING) - np.log(before + SMOOTHING)

    def _shares(self) -> Iterator[_Shares]:
        """Yield the test sets one at a time: each takes a number for every bigram of all texts."""
        in_train = self._train.sum(axis=0).A1 > 0
        for test in self._tests:
            counts = test.sum(axis=0).A1
            known = in_train | (counts > 0)
            if not known.any():
                raise ValueError(_NO_BIGRAM)
            added = SMOOTHING * int(known.sum())
            p = np.where(known, (counts + SMOOTHING) / (counts.sum() + added), 0)
            yield _Shares(p, float((p[known] * np.log(p[known])).sum()), added)


class _Shares(NamedTuple):
    """A test set's smoothed distribution over its bigrams and the training texts'."""

    p: Floats
    negative_entropy: float
    added: float
    """What smoothing adds to a total of counts."""

    def divergence(self, cross: Floats, totals: NDArray[np.int64]) -> Floats:
        """Return Σ p_T log p_T - Σ p_T log p_S, from Σ p_T log(count_S + smoothing)."""
        found = self.negative_entropy - cross + np.log(totals + self.added)
        positive: Floats = np.maximum(found, 0)  # below 0 by rounding alone
        return positive


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
