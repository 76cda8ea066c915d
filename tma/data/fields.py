"""Rows of the data wheel's files → the named fields that the templates of `suite.toml` fill in.

One function a form of row. Each takes the row, the row before it (the source of a wrong candidate)
and the source's random generator; a field that the row cannot give is empty, and such a row is not
used for a template that needs it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Fields = dict[str, str]


_BLANKS = re.compile(r"[ \t\xa0]{2,}|[\t\xa0]")


def clean(value: object) -> str:
    """Return text without runs of blanks and without the residue of spreadsheet line ends."""
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
    header = row["section_header"]
    section = _SECTIONS.get(header, header.lower().replace("_", " "))
    return {
        "section": section,
        "note": clean(row["section_text"]),
        "dialogue": clean(row["dialogue"]),
    }


def _narrative(row: Row, other: Row, rng: random.Random) -> Fields:
    first, second = (clean(a) for a in row["answer"][:2])
    agree = rng.random() < 0.5
    differ = first.lower() != second.lower()
    return {
        "question": clean(row["question"]),
        "answer": first,
        "other": second if differ else "",
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
    document = clean(row["document"])
    return {
        "document": document,
        "summary": clean(row["summary"]),
        "document_opening": _first_sentence(document),
    }


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
