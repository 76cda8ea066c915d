from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tma import Method
from tma.arrange.receipt import ids_digest
from tma.errors import DataError, OrderError, ParameterError


class Lengths:
    """An encoder that sees how long a text is, and its digits, and counts the texts it is given."""

    def __init__(self, name: str = "lengths/1") -> None:
        self.name, self.texts = name, 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        made = [[len(t), 10 * sum(c.isdigit() for c in t), 1] for t in texts]
        return np.array(made, dtype=np.float32)


def both(file: Path) -> tuple[Dataset, Dataset]:
    return tma.load(str(file), split="train"), tma.load(str(file), split="test")


@pytest.fixture(scope="module")
def arranged(dataset_file: Path, cache: Path) -> tma.Arranged:
    train, test = both(dataset_file)
    return tma.arrange_dataset(train, test, Method("tma_min", limit=20), encoder=Lengths())


def test_a_receipt_names_what_made_the_order(arranged: tma.Arranged, dataset_file: Path) -> None:
    train, test = both(dataset_file)
    receipt = arranged.receipt
    assert receipt.method == Method("tma_min", limit=20)
    assert receipt.encoder == "lengths/1"
    assert receipt.train == tma.data.load.fingerprint(train)
    assert receipt.test == tma.data.load.fingerprint(test)
    assert receipt.instances == len(arranged.ids) >= 20
    X, Y = (tma.embed(part, Lengths()) for part in (train, test))
    assert arranged.rows.tolist() == tma.arrange("tma_min", X, Y, limit=20).tolist()
    assert list(arranged.ids) == train.select(arranged.rows)["id"]


@pytest.mark.parametrize("name", ["random", "round_robin", "cluster"])
def test_an_order_that_goes_by_no_similarity_embeds_nothing(
    dataset_file: Path, cache: Path, name: str
) -> None:
    assert cache.is_dir()
    train, test = both(dataset_file)
    encoder = Lengths(f"of {name}")
    found = tma.arrange_dataset(train, test, Method(name, seed=3, pool=9), encoder=encoder)
    assert encoder.texts == 0
    X, Y = (tma.embed(part, Lengths()) for part in (train, test))
    made = tma.arrange(name, X, Y, tasks=train["task"], seed=3, pool=9)
    assert found.rows.tolist() == made.tolist()
    tma.arrange_dataset(train, test, Method(name, exclude_near_duplicates=0.99), encoder=encoder)
    assert encoder.texts > 0


def test_an_order_of_a_pool_embeds_the_pool_alone(
    dataset_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMA_CACHE", str(tmp_path))
    train, test = both(dataset_file)
    X, Y = (tma.embed(part, Lengths()) for part in (train, test))
    for within in ("row", "shuffled"):
        method = Method("tma_nft", limit=6, seed=3, pool=9, within=within, exact_limit=True)
        encoder = Lengths("of a pool")
        found = tma.arrange_dataset(train, test, method, encoder=encoder)
        given = {"limit": 6, "seed": 3, "pool": 9, "within": within, "exact_limit": True}
        assert found.rows.tolist() == tma.arrange("tma_nft", X, Y, **given).tolist()
        assert list(found.ids) == train.select(found.rows)["id"]
        # Once: equal texts, and those of the first order, are not encoded again.
        assert encoder.texts <= 9 + len(test)


def test_anybody_can_compute_the_digest() -> None:
    expected = hashlib.sha256('["a","ü"]'.encode()).hexdigest()
    assert ids_digest(["a", "ü"]) == expected
    assert ids_digest(["a,ü"]) != expected


def test_a_saved_order_is_one_file_that_is_read_back(
    arranged: tma.Arranged, tmp_path: Path
) -> None:
    for name in ("order", "order.json", "order.seed1"):  # similar names stand apart
        arranged.save(tmp_path / name)
        assert tma.read_receipt(tmp_path / name) == arranged.receipt
    assert {file.name for file in tmp_path.iterdir()} == {"order", "order.json", "order.seed1"}
    stored = json.loads((tmp_path / "order").read_text("utf-8"))
    assert stored["ids"] == list(arranged.ids)
    assert stored["method"]["name"] == "tma_min"
    assert stored["sha256"] == ids_digest(arranged.ids)
    assert {"numpy", "torch", "sentence-transformers"} <= {*stored["versions"]}


def test_a_receipt_of_a_published_run_is_still_read(tmp_path: Path) -> None:
    ids = ["a", "b"]
    old = {"method": {"name": "random"}, "train": "t", "test": "u", "encoder": "e/1"}
    counts = {"left_out": 0, "instances": 2}
    (tmp_path / "order.json").write_text(json.dumps({"ids": ids}), "utf-8")
    (tmp_path / "order.receipt.json").write_text(
        json.dumps(old | counts | {"sha256": ids_digest(ids)}), "utf-8"
    )
    receipt = tma.read_receipt(tmp_path / "order.json")
    assert receipt == tma.Receipt(Method("random"), "t", "u", "e/1", 0, ("a", "b"))
    published = Path(__file__).parents[2].glob("book/runs/*/order.json")
    assert all(tma.read_receipt(path).instances for path in published)


def test_a_receipt_tells_other_embeddings_apart(dataset_file: Path, cache: Path) -> None:
    class Shifted(Lengths):
        content = "c0ffee"

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return super().encode(texts) + np.float32(1)

    train, test = both(dataset_file)
    made = [
        tma.arrange_dataset(train, test, "nearest", encoder=encoder).receipt
        for encoder in (Lengths(), Lengths(), Shifted("lengths/2"))
    ]
    assert made[0].method == Method("nearest")
    assert made[0] == made[1]
    assert [m.encoder_content for m in made] == [None, None, "c0ffee"]
    assert made[0].embeddings is not None and {*made[0].embeddings} == {"X", "Y"}
    assert made[0].embeddings != made[2].embeddings
    assert tma.arrange_dataset(train, test, "random").receipt.embeddings is None
    with pytest.raises(ParameterError, match="did you mean tma_min"):
        tma.arrange_dataset(train, test, "tma_mim")


def test_a_receipt_counts_what_was_left_out(dataset_file: Path, cache: Path) -> None:
    train, test = both(dataset_file)
    method = Method("random", exclude_near_duplicates=np.float32(0.9999), limit=np.int64(5))
    found = tma.arrange_dataset(train, test, method, encoder=Lengths())
    X, Y = (tma.embed(part, Lengths()) for part in (train, test))
    expected = int(tma.near_duplicates(X, Y, 0.9999).duplicate.sum())
    assert found.receipt.left_out == expected > 0
    json.dumps(found.receipt.to_json())


RECEIPT = tma.Receipt(Method("random"), "t", "u", "e/1", 0, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("consumed", "given", "told"),
    [
        ("abc", {}, None),
        ("abcabc", {"epochs": 2}, None),
        ("ab", {"prefix": True}, None),
        ("abca", {"epochs": 2, "prefix": True}, None),
        ("", {"prefix": True}, None),
        ("acb", {}, "position 2 of epoch 1: expected b, got c"),
        ("abcacb", {"epochs": 2}, "position 2 of epoch 2: expected b, got c"),
        ("ab", {}, "position 3 of epoch 1: expected c, got the end"),
        ("abc", {"epochs": 2}, "position 1 of epoch 2: expected a, got the end"),
        ("abca", {}, "position 4 of epoch 1: expected the end, got a"),
        ("abcab", {"prefix": True}, "position 4 of epoch 1: expected the end, got a"),
        ("xyz", {"prefix": True}, "position 1 of epoch 1: expected a, got x"),
    ],
)
def test_the_first_place_that_differs_is_named(
    consumed: str, given: dict[str, Any], told: str | None
) -> None:
    if told is None:
        RECEIPT.check([*consumed], **given)
    else:
        with pytest.raises(OrderError, match=told):
            RECEIPT.check([*consumed], **given)


@given(st.lists(st.sampled_from("ab"), max_size=5), st.integers(1, 3), st.data())
def test_any_sequence_departs_where_it_first_differs(
    ids: list[str], epochs: int, data: st.DataObject
) -> None:
    receipt = tma.Receipt(Method("random"), "", "", "", 0, tuple(ids))
    whole = ids * epochs
    receipt.check(whole, epochs=epochs)
    consumed = data.draw(st.lists(st.sampled_from("ab"), max_size=len(whole) + 1))
    same = [k for k, pair in enumerate(zip(consumed, whole, strict=False)) if len({*pair}) > 1]
    first = min([*same, *([len(whole)] if len(consumed) > len(whole) else [])], default=None)
    found = receipt.departure(consumed, epochs=epochs, prefix=True)
    assert (found is None) == (first is None)
    if found is not None and first is not None:
        assert (found.epoch - 1) * len(ids) + found.position - 1 == first
        assert found.actual == consumed[first]


def test_epochs_are_counted() -> None:
    with pytest.raises(ParameterError, match="epochs=0 cannot be used"):
        RECEIPT.check([], epochs=0)


def test_a_changed_file_is_refused(arranged: tma.Arranged, tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    arranged.save(path)
    stored = json.loads(path.read_text("utf-8"))
    stored["ids"] = stored["ids"][::-1]
    path.write_text(json.dumps(stored), "utf-8")
    with pytest.raises(OrderError, match="changed after it was written"):
        tma.read_receipt(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ('{"ids": null, "sha256": ""}', "expected a list"),
        *((damage, "") for damage in ("", "{}", '{"method": 1, "sha256": ""}', "[]", "3")),
        ('{"ids": [], "sha256": "", "instances": 0, "method": {"name": "no"}}', "one of: "),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str, words: str) -> None:
    path = tmp_path / "order.json"
    path.write_text(damage, "utf-8")
    with pytest.raises(DataError, match=rf"order\.json cannot be read as a receipt: .*{words}"):
        tma.read_receipt(path)
