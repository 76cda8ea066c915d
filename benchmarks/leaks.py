"""How many injected leaks `tma.leaks` finds, what else it flags, how long it takes.

Into training rows that share no source with the test rows go copies of test rows: as they are; with
a tenth of the words replaced, deleted or swapped; as the second turn of a chat; inside a longer
text; in other case and punctuation. One table: a line a dataset and fold. `--read` writes what was
flagged and not injected, both texts, for somebody to judge.

    python -m benchmarks.leaks [suite] [p3.parquet] [--folds 5] [--seed 0] [--embed] [--read FILE]
    python -m benchmarks.leaks --speed [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tma
from tma.data.load import exchanges, sources

Exchange = tuple[str, str]
Row = list[Exchange]

EACH = 200
"""Leaks of each kind."""
ROWS = (20_000, 1000)
"""Training and test rows."""
EMBEDDED = 2000
"""Training rows with `--embed`, which takes minutes."""
SPEED = (100_000, 1000, 60)
"""Training rows, test rows, words of each."""
FOLDS = 5


def exact(row: Exchange, hosts: list[Row], random: np.random.Generator) -> Row:
    return [row]


def edited(row: Exchange, hosts: list[Row], random: np.random.Generator) -> Row:
    """Replace, delete or swap a tenth of the words, at least one."""
    words = [*row[0].split(" "), "\0", *row[1].split(" ")]
    places = np.flatnonzero(np.array(words) != "\0")
    dropped = set()
    for place in random.choice(places, max(1, round(len(places) / 10)), replace=False).tolist():
        way, other = random.integers(3), place + 1 if place + 1 in places else place - 1
        if way == 0:
            words[place] = random.choice(hosts[random.integers(len(hosts))][0][0].split() or ["x"])
        elif way == 1:
            dropped.add(place)
        elif other in places:
            words[place], words[other] = words[other], words[place]
    kept = " ".join(word for place, word in enumerate(words) if place not in dropped)
    prompt, _, response = kept.partition("\0")
    return [(prompt.strip(), response.strip())]


def second_turn(row: Exchange, hosts: list[Row], random: np.random.Generator) -> Row:
    return [hosts[random.integers(len(hosts))][0], row]


def embedded(row: Exchange, hosts: list[Row], random: np.random.Generator) -> Row:
    """Put prompt and response between the words of two other rows."""
    first, second = (hosts[k][0] for k in random.integers(len(hosts), size=2))
    around = f"{first[0]} {second[0]} {second[1]}".split()
    at = random.integers(len(around))
    text = " ".join([*around[:at], *row, *around[at:]])
    return [(text, first[1])]


def other_case(row: Exchange, hosts: list[Row], random: np.random.Generator) -> Row:
    """Translate case and punctuation."""
    case: Callable[[str], str] = [str.upper, str.lower, str.title][random.integers(3)]
    marks = str.maketrans({"'": "\u2019", '"': "\u201c", ",": " ,", ".": "", "?": " ?!", ":": " -"})
    prompt, response = (case(text).translate(marks) for text in row)
    return [(prompt, response)]


KINDS = (exact, edited, second_turn, embedded, other_case)


def folds(name: str, fold: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return training and test rows that share no source."""
    if name == "suite":
        parts = [tma.load(name, split=split, fold=fold) for split in ("train", "test")]
    else:
        every = tma.load(f"p3:{name}", split="all")
        of = np.array(sources(every))
        names = np.random.default_rng(seed).permutation(np.unique(of))
        held = np.isin(of, names[fold::FOLDS])
        parts = [every.select(np.flatnonzero(rows)) for rows in (~held, held)]
    random = np.random.default_rng([seed, fold])
    drawn = [
        part.select(random.permutation(len(part))[:size])
        for part, size in zip(parts, ROWS, strict=True)
    ]
    train, test = (exchanges(part) for part in drawn)
    return train, test


def injected(
    train: list[Row], test: list[Row], random: np.random.Generator
) -> tuple[list[Row], list[str], list[int]]:
    """Return leaking rows, the kind of each, and the test row it is made of."""
    of = random.permutation(len(test))[: EACH * len(KINDS)]
    kinds = [KINDS[place % len(KINDS)] for place in range(len(of))]
    rows = [kind(test[j][0], train, random) for kind, j in zip(kinds, of, strict=True)]
    return rows, [kind.__name__ for kind in kinds], of.tolist()


def embeddings(train: list[Row], test: list[Row]) -> tuple[Any, Any]:
    """Return embeddings of whole rows, with all turns."""
    texts = [[" ".join(" ".join(pair) for pair in row) for row in part] for part in (train, test)]
    X, Y = (tma.embed(part) for part in texts)
    return X, Y


def measured(name: str, fold: int, seed: int, embed: bool) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return a line of the table, and the flagged rows that were not injected."""
    train, test = folds(name, fold, seed)
    train = train[: EMBEDDED if embed else None]
    rows, kinds, of = injected(train, test, np.random.default_rng(seed))
    both = embeddings(train + rows, test) if embed else (None, None)
    start = time.perf_counter()
    found = tma.leaks(train + rows, test, *both)
    seconds = time.perf_counter() - start
    flagged = dict(zip(found["row"] - len(train), found["test_row"], strict=True))
    hit = pd.DataFrame({"kind": kinds, "found": [k in flagged for k in range(len(kinds))]})
    hit["right"] = [flagged.get(k) == j for k, j in enumerate(of)]
    share = hit.groupby("kind")["found"].mean().round(3)
    others = found[found["row"] < len(train)]
    line = {"data": Path(name).stem, "fold": fold, "train": len(train), "test": len(test)}
    line |= {kind.__name__: float(share[kind.__name__]) for kind in KINDS}
    line |= {"same test row": round(float(hit["right"].mean()), 3), "others": len(others)}
    return line | {"seconds": round(seconds, 1)}, others.assign(data=line["data"], fold=fold)


def speed(seed: int) -> dict[str, Any]:
    """Return time and memory at a size, for texts of words that are as frequent as English ones."""
    train, test, words = SPEED
    random = np.random.default_rng(seed)
    share = 1 / np.arange(10, 30_010)
    drawn = random.choice(len(share), (train + test, words), p=share / share.sum())
    rows = [[(" ".join(f"w{word}" for word in text), "")] for text in drawn.tolist()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = tma.leaks(rows[:train] + rows[-10:], rows[train:])
    line = {"train": train, "test": test, "words": words, "found": len(found)}
    seconds = round(time.perf_counter() - start, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return line | {"seconds": seconds, "before MB": before >> 10, "peak MB": peak >> 10}


def lines(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the lines of the table."""
    others = []
    for name in given.data:
        for fold in range(given.folds):
            line, flagged = measured(name, fold, given.seed, given.embed)
            others.append(flagged)
            yield line
    if given.read is not None and others:
        pd.concat(others).to_json(given.read, orient="records", lines=True, force_ascii=False)
    if given.speed:
        yield speed(given.seed)


def main() -> None:
    """Print the table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", help="suite, or P3 files")
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embed", action="store_true", help="with cosine similarities")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--read", type=Path, help="where flagged rows that were not injected go")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = []
    for line in lines(given):
        table.append(line)
        print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(table), "ascii")


if __name__ == "__main__":
    main()
