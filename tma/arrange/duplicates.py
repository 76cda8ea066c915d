"""Training rows that are nearly in the test set: the first objection to nearest-first.

`near_duplicates` compares embeddings of whole rows. `leaks` looks for each test text in each
training exchange. A word of the test text is covered where it stands with its neighbours in the
exchange: in a common 3-gram, or in a rare 2-gram. Words weigh the less the more rows have them in
the same 3-gram, so that a template or a passage that many rows share proves nothing. One sparse
product finds the pairs that can reach the least overlap; only these are compared word by word.
The n-grams are exact keys and no hashes: nothing depends on chance.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tma.arrange.exact_knn import BLOCK, UNIT, Embeddings, nearest_blocks, slices, unit_pair
from tma.arrange.spec import Exchanges, Floats, Numbers
from tma.errors import check_length, wrong

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_array

TOLERANCE = 1e-6
"""By how much a similarity may miss a threshold and still reach it: what rounding takes off."""
OVERLAP = 0.65
"""Share of a test text's weight from which a training exchange holds it. Changing every tenth word
leaves about 0.8, and less of a text of ten words."""
ALIKE = (0.95, 0.5)
"""Cosine similarity from which a smaller share, the second number, is enough."""
SHARED = 5
"""Training exchanges with a 3-gram beyond which it weighs less: a leak has copies, too."""
TELLING = 12
"""So many words, those that weigh most, are what tells a text from others; half of them must be
covered, however long the passage around them is."""
LONE = 1000
"""Of so many exchanges one more may have a 2-gram that counts without a third word."""
COMMON = 5000
"""Pairs of texts that may share an n-gram that the search for candidates looks at."""
WORDS = 2**19
"""Words of the training exchanges that are looked up at once."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of scripts without blanks: Thai, Lao, Burmese, Khmer, Kana, Han. Each is a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_JOINS = re.compile("['\u2019\u02bc\u00ad\u200b-\u200d\ufeff]")
"""What stands inside a word: apostrophes, and marks that are not seen."""


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """What the test set has in common with each training row; all are (n,)."""

    nearest: Numbers
    """The test row with the highest cosine similarity, the lowest among equals."""
    cosine: Floats
    """That similarity."""
    duplicate: NDArray[np.bool_]
    """Whether it reaches the threshold."""


def near_duplicates(
    X: Embeddings, Y: Embeddings, threshold: float = 0.95, *, device: str | None = None
) -> NearDuplicates:
    """Find the training rows whose embedding is nearly that of a test row; `leaks` reads texts.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        threshold: cosine similarity from which a row is a near-duplicate, in (0, 1]; 1 finds rows
            that are equal but for rounding.
        device: where products are computed; None: a GPU if there is one.

    Raises:
        ValueError: embeddings or a threshold that cannot be used.

    Source: this package; the paper does not look for such rows.
    """
    if not 0 < threshold <= 1:
        raise wrong("threshold", threshold, "a number in (0, 1]")
    train, test = unit_pair(X, Y)
    parts = [
        (best, key, np.linalg.norm(block.numpy().astype(np.float64), axis=1))
        for block, best, key in nearest_blocks(train, test.float32, device=device)
    ]
    nearest, key, length = (np.concatenate(values) for values in zip(*parts, strict=True))
    of_test = np.linalg.norm(test.float32.astype(np.float64), axis=1)
    # Rows are of length 1 up to their own precision; a cosine is not.
    cosine = key / UNIT / (length * of_test[nearest])
    return NearDuplicates(nearest, cosine, cosine >= threshold - TOLERANCE)


def leaks(
    train: Exchanges, test: Exchanges, X: Embeddings | None = None, Y: Embeddings | None = None
) -> pd.DataFrame:
    """Find the training rows that hold a test text: as it is, edited, in a later turn, inside more.

    Case, punctuation and the form of Unicode count nothing; Chinese, Japanese or Thai is compared
    letter by letter. A test text is its prompt and response, or its prompt alone if that is rare
    enough. What many rows share, such as a passage or a template, is no leak.

    Args:
        train: of each training row its exchanges, (prompt without system text, response) each, as
            `tma.data.load.exchanges` gives them.
        test: the same of each test row; a response may be "".
        X: (n, d) unit embeddings of the training rows. With a cosine similarity of at least 0.95
            half of a test text is enough, else it takes 0.65.
        Y: (m, d) unit embeddings of the test rows.

    Returns:
        One line a leaking training row, by ascending `row`: `turn` (the exchange, from 1),
        `test_row` (the one it holds most of, the lowest among equals), `overlap` (the share of that
        test text, in [0, 1]), `cosine` (of the two rows; NaN without X and Y), and both texts,
        `text` and `test_text`.

    Raises:
        ValueError: embeddings that cannot be used, only one of X and Y, or not one row each.

    Source: this package; the thresholds by injected leaks, `benchmarks/leaks.py`.
    """
    import pandas as pd

    if (X is None) != (Y is None):
        raise wrong("Y" if Y is None else "X", None, "embeddings of both sets, or of neither")
    search = _Search(train, test)
    whole, real = ("row", "turn", "test_row", "of"), ("overlap", "share")
    types = dict.fromkeys(whole, np.int64) | dict.fromkeys(real, np.float64)
    found = pd.DataFrame(search.pairs(), columns=[*types]).astype(types)  # where there is none, too
    cosine = np.full(len(found), np.nan)
    if X is not None and Y is not None:
        check_length("train", train, "X", len(X))
        check_length("test", test, "Y", len(Y))
        cosine = _cosines(X, Y, found["row"].to_numpy(), found["test_row"].to_numpy())
    found["cosine"] = cosine
    enough = (found["overlap"] >= OVERLAP) | (found["cosine"] >= ALIKE[0] - TOLERANCE)
    # Templates weigh nothing: of tests that share a text the one with the same template is first.
    by = ["row", "share", "overlap", "cosine", "test_row", "turn"]
    best = found[enough].sort_values(by, ascending=[True, False, False, False, True, True])
    best = best.drop_duplicates("row").reset_index(drop=True)
    best["text"] = [
        _joined(train[row][turn - 1]) for row, turn in zip(best["row"], best["turn"], strict=True)
    ]
    best["test_text"] = [_joined(search.tests[of].exchange) for of in best["of"]]
    return best[["row", "turn", "test_row", "overlap", "cosine", "text", "test_text"]]


def _joined(exchange: tuple[str, str]) -> str:
    return " ".join(part for part in exchange if part)


def _cosines(X: Embeddings, Y: Embeddings, rows: Numbers, tests: Numbers) -> Floats:
    """Return the cosine similarity of each pair, to 10 decimals."""
    train, test = unit_pair(X, Y)
    train.check()
    cosine = np.empty(len(rows))
    for part in slices(len(rows), max(1, BLOCK // train.width)):
        x, y = (
            of.take(numbers[part]).numpy().astype(np.float64)
            for of, numbers in ((train, rows), (test, tests))
        )
        cosine[part] = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return cosine.round(10)


def words(text: str) -> list[str]:
    """Return a text's words without case and punctuation; of scripts without blanks, letters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(_JOINS.sub("", text.lower()))


class _Test(NamedTuple):
    """An exchange of a test row."""

    row: int
    exchange: tuple[str, str]
    prompt: list[str]
    response: list[str]

    @property
    def words(self) -> list[str]:
        return self.prompt + self.response


class _Known(NamedTuple):
    """What is known of each n-gram, (n-grams,)."""

    weight: Floats
    counts: NDArray[np.bool_]
    """Whether it is rare enough to cover two words without a third."""
    rare: NDArray[np.bool_]
    """Whether a word is so rare that it proves something alone."""
    often: NDArray[np.bool_]
    """Whether it is in so many texts that the search for candidates leaves it out."""


class _Grams:
    """Numbers of the n-grams of some texts, n = 1 to 3, n by n; -1 stands for every other one."""

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        self._words: dict[str, int] = {}
        number = self._words.setdefault
        one = _flat([number(word, len(self._words)) for word in text] for text in texts)
        self._two = _kinds(_pairs(one))
        two = _numbers(self._two, _pairs(one))
        # Two 2-grams that overlap are a 3-gram.
        self._three = _kinds(_pairs(two))
        sizes = [len(self._words), len(self._two), len(self._three)]
        self.first: Numbers = np.cumsum([0, *sizes])
        """(4,) the first number of each n; the last is the number of all."""

    def starting(self, texts: Iterable[Sequence[str]]) -> Numbers:
        """Return (3, p): the n-grams that start at each word; a place of none ends each text."""
        get = self._words.get
        one = _flat([get(word, -1) for word in text] for text in texts)
        two = _numbers(self._two, _pairs(one))
        three = _numbers(self._three, _pairs(two))
        found = np.stack([one, two, three])
        return np.where(found >= 0, found + self.first[:3, None], -1)

    def held(self, texts: Sequence[str]) -> csr_array:
        """Return which n-grams each text has, (texts, n-grams); blanks are between its words."""
        from scipy.sparse import csr_array

        kinds, ends = [np.empty(0, dtype=np.int32)], [np.zeros(1, dtype=np.int64)]
        for part in _batches([text.count(" ") + 1 for text in texts]):
            batch = [text.split() for text in texts[part]]  # words take ten times their letters
            of = np.repeat(np.arange(len(batch)), [len(text) + 1 for text in batch])
            found = self.starting(batch)
            level, at = np.nonzero(found >= 0)
            codes = np.sort(of[at] * self.first[-1] + found[level, at])
            codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique takes ten times as long
            rows, columns = np.divmod(codes, self.first[-1])
            kinds.append(columns.astype(np.int32))
            ends.append(ends[-1][-1] + np.cumsum(np.bincount(rows, minlength=len(batch))))
        columns = np.concatenate(kinds)
        shape = (len(texts), int(self.first[-1]))
        parts = (np.ones(len(columns), dtype=np.int8), columns, np.concatenate(ends))
        return csr_array(parts, shape=shape)


def _flat(texts: Iterable[Sequence[int]]) -> Numbers:
    return np.array([number for text in texts for number in (*text, -1)], dtype=np.int64)


def _pairs(numbers: Numbers) -> Numbers:
    """Return the key of each number and the next one; -1: one of them is missing."""
    after = np.append(numbers, -1)[1:]
    return np.where((numbers >= 0) & (after >= 0), numbers << 32 | after, -1)


def _kinds(keys: Numbers) -> Numbers:
    return np.unique(keys[keys >= 0])


def _numbers(kinds: Numbers, keys: Numbers) -> Numbers:
    """Return the place of each key in the kinds; -1: it is none of them."""
    at = np.searchsorted(kinds, keys)
    known = at < len(kinds)
    known[known] = kinds[at[known]] == keys[known]
    return np.where(known, at, -1)


def _batches(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield slices of texts that have about so many words together."""
    turn = np.cumsum(lengths) // WORDS
    starts = np.flatnonzero(np.diff(turn, prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(lengths)]):
        yield slice(start, stop)


class _Search:
    """The distinct training exchanges, the test texts, and what their n-grams weigh."""

    def __init__(self, train: Exchanges, test: Exchanges) -> None:
        tests = (_Test(j, pair, *map(words, pair)) for j, row in enumerate(test) for pair in row)
        self.tests = [of for of in tests if of.words]
        self._grams = _Grams(of.words for of in self.tests)
        self._places: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for i, row in enumerate(train):
            for turn, pair in enumerate(row, 1):
                key = (" ".join(words(pair[0])), " ".join(words(pair[1])))
                self._places.setdefault(key, []).append((i, turn))
        self._exchanges = list(self._places)
        self._held = self._grams.held([f"{one} {two}".strip() for one, two in self._exchanges])
        once = dict.fromkeys(tuple(of.words) for of in self.tests)
        among, of_test = (
            np.bincount(held.indices, minlength=held.shape[1])
            for held in (self._held, self._grams.held([" ".join(text) for text in once]))
        )
        self._known = _Known(
            weight=1 / np.maximum(np.maximum(of_test, among / SHARED), 1),
            counts=among <= SHARED + len(self._exchanges) / LONE,
            rare=among <= SHARED,
            often=among * of_test > COMMON,
        )

    def pairs(self) -> list[tuple[int, int, int, int, float, float]]:
        """Return (row, turn, test row, text, overlap, share of words) of each pair that may be one.

        The overlap is at least what is enough with a similar embedding.
        """
        texts = [_Text(of.words, len(of.prompt), self._grams, self._known) for of in self.tests]
        found = []
        for number, (of, reached) in enumerate(zip(texts, self._candidates(texts), strict=True)):
            test, chosen = self.tests[number], reached
            if of.weight.sum() < 1:  # so common that only the same exchange is a leak
                chosen = reached[[self._equal(test, at) for at in reached.tolist()]]
            for part in slices(len(chosen), max(1, BLOCK // len(of.weight))):
                overlap, share = of.overlap(self._held[chosen[part]])
                for at in np.flatnonzero(overlap).tolist():
                    places = self._places[self._exchanges[chosen[part][at]]]
                    scores = float(overlap[at]), float(share[at])
                    found += [(row, turn, test.row, number, *scores) for row, turn in places]
        return found

    def _equal(self, test: _Test, exchange: int) -> bool:
        """Return whether an exchange has the words of a test text, or its prompt has them."""
        prompt, response = self._exchanges[exchange]
        text = " ".join(test.words)
        return text == f"{prompt} {response}".strip() or (not test.response and text == prompt)

    def _candidates(self, texts: Sequence[_Text]) -> list[Numbers]:
        """Return for each test text the exchanges that can reach the least overlap."""
        from scipy.sparse import csc_array

        if not texts or not self._exchanges:
            return [np.empty(0, dtype=np.int64) for _ in texts]
        least, kinds, most = zip(*(of.bound(self._known.often) for of in texts), strict=True)
        ends = np.cumsum([0, *map(len, kinds)])
        shape = (self._held.shape[1], len(texts))
        reach = csc_array((np.concatenate(most), np.concatenate(kinds), ends), shape=shape).tocsr()
        rows, columns = [], []
        for part in slices(len(self._exchanges), max(1, BLOCK // len(texts))):
            sums = (self._held[part] @ reach).tocoo()
            enough = sums.data >= np.array(least)[sums.col]
            rows.append(sums.row[enough].astype(np.int64) + part.start)
            columns.append(sums.col[enough])
        row, column = np.concatenate(rows), np.concatenate(columns)
        order = np.lexsort((row, column))
        return np.split(row[order], np.searchsorted(column[order], np.arange(1, len(texts))))


class _Text:
    """A test text word by word: what each word weighs, and which n-grams cover it."""

    def __init__(self, text: Sequence[str], prompt: int, grams: _Grams, known: _Known) -> None:
        length = len(text)
        starting = grams.starting([text])[:, :length]
        widest = min(3, length)
        self.weight: Floats = np.full(length, np.inf)
        """(length,) the least weight of the 3-grams that a word is in."""
        of = known.weight[starting[widest - 1, : length - widest + 1]]
        for first in range(widest):
            part = self.weight[first : first + len(of)]
            np.minimum(part, of, out=part)
        self._words = starting[0]
        self._covering: list[tuple[int, Numbers, Numbers]] = []
        """n, and where which n-grams start that cover their words."""
        for n in (2, 3) if length > 2 else (length,):  # one or two words are one n-gram
            at = np.arange(length - n + 1)
            if n == 2 and length > 2:
                # At its first place alone: twice the same two words prove no more than once.
                at = np.sort(np.unique(starting[1, at], return_index=True)[1])
                at = at[known.counts[starting[1, at]]]
            self._covering.append((n, at, starting[n - 1, at]))
        # A word so rare that it proves something alone counts in the share, not in the rest.
        self._rare = np.flatnonzero(known.rare[starting[0]])
        # The prompt alone is judged as well as the whole.
        self._ends = sorted({prompt, length} - {0})

    def bound(self, often: NDArray[np.bool_]) -> tuple[float, Numbers, Floats]:
        """Return the least sum from which an exchange is a candidate, n-grams, what each adds.

        Of n-grams that are in many texts it is taken for granted that the exchange has them.
        """
        sums = np.cumsum(np.append(0, self.weight))
        granted = np.zeros(len(self.weight), dtype=bool)
        for n, at, gram in self._covering:
            for place in at[often[gram]]:
                granted[place : place + n] = True
        least = min(
            ALIKE[1] * sums[end] - self.weight[:end][granted[:end]].sum() for end in self._ends
        )
        kinds, most = [], []
        for n, at, gram in (*self._covering, (1, self._rare, self._words[self._rare])):
            kept = ~often[gram] if least > TOLERANCE else np.ones(len(gram), dtype=bool)
            kinds.append(gram[kept])
            most.append((sums[at + n] - sums[at])[kept])
        return least - TOLERANCE, np.concatenate(kinds), np.concatenate(most)

    def overlap(self, held: csr_array) -> tuple[Floats, Floats]:
        """Return the weighted share of the text in each exchange, 0: no leak; and that of words."""
        kinds, at = np.unique(
            np.concatenate([self._words, *(gram for _, _, gram in self._covering)]),
            return_inverse=True,
        )
        has = held[:, kinds].toarray()[:, at] > 0
        present, rest = np.split(has, [len(self._words)], axis=1)
        covered = np.zeros(present.shape, dtype=bool)
        for n, starts, _ in self._covering:
            here, rest = np.split(rest, [len(starts)], axis=1)
            for place in range(n):
                covered[:, starts + place] |= here
        judged = [self._judged(covered, present, end) for end in self._ends]
        share: Floats = np.max(judged, axis=0)
        return share, covered.mean(axis=1)

    def _judged(self, covered: NDArray[np.bool_], present: NDArray[np.bool_], end: int) -> Floats:
        """Return the share of the first `end` words that each exchange holds; 0: no leak."""
        covered, present, weight = covered[:, :end], present[:, :end], self.weight[:end]
        alone = self._rare[self._rare < end]
        counted = covered.copy()
        counted[:, alone] |= present[:, alone]
        share = (np.where(counted, weight, 0).sum(1) / weight.sum()).round(10)
        weight = np.minimum(weight / np.sort(weight)[-min(TELLING, end)], 1)
        telling = weight >= 0.7
        rare = (covered & (self.weight[:end] >= 0.5)).sum(1)
        holds = (
            (share >= ALIKE[1])
            & (2 * covered[:, telling].sum(1) >= telling.sum())
            & (_gap(covered, present) <= 0.5 + np.log(end) / np.log(4))
            & ((2 * covered.sum(1) >= end) | (rare >= 8))
        )
        if end < len(self.weight):
            holds &= rare >= 4
        return np.where(holds, share, 0)


def _gap(covered: NDArray[np.bool_], present: NDArray[np.bool_]) -> Floats:
    """Return the length of the stretch that is missing most: missing words less covered ones.

    A word that stands elsewhere in the exchange is a quarter missing. Edits are spread over a text
    and leave short stretches, whose longest grows as the logarithm of its length; another question
    to the same passage is one stretch.
    """
    missing = np.where(covered, -1, np.where(present, 0.25, 1))
    sums = np.cumsum(np.pad(missing, ((0, 0), (1, 0))), axis=1)
    gap: Floats = (sums - np.minimum.accumulate(sums, axis=1)).max(axis=1)
    return gap
