from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from numpy.typing import NDArray

import tma
from tma import Method
from tma.arrange.receipt import ids_digest
from tma.errors import DataError, OrderError


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


def test_a_saved_order_is_read_back_and_checked(arranged: tma.Arranged, tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    arranged.save(path)
    arranged.save(tmp_path / "order.seed1")  # a similar name stands apart
    assert len(list(tmp_path.iterdir())) == 4
    assert tma.read_receipt(path) == arranged.receipt
    assert json.loads(path.read_text("utf-8"))["ids"] == list(arranged.ids)
    stored = json.loads((tmp_path / "order.receipt.json").read_text("utf-8"))
    assert stored["method"]["name"] == "tma_min"
    assert stored["sha256"] == ids_digest(arranged.ids)


def test_a_receipt_counts_what_was_left_out(dataset_file: Path, cache: Path) -> None:
    train, test = both(dataset_file)
    method = Method("random", exclude_near_duplicates=np.float32(0.9999), limit=np.int64(5))
    found = tma.arrange_dataset(train, test, method, encoder=Lengths())
    X, Y = (tma.embed(part, Lengths()) for part in (train, test))
    expected = int(tma.near_duplicates(X, Y, 0.9999).duplicate.sum())
    assert found.receipt.left_out == expected > 0
    json.dumps(found.receipt.to_json())


def test_another_sequence_is_refused(arranged: tma.Arranged, tmp_path: Path) -> None:
    swapped = [*arranged.ids[1:], arranged.ids[0]]
    with pytest.raises(OrderError, match=f"{len(swapped)} ids have the SHA-256"):
        arranged.receipt.check(swapped)
    path = tmp_path / "order.json"
    arranged.save(path)
    path.write_text(json.dumps({"ids": swapped}), "utf-8")
    with pytest.raises(OrderError, match="order was not kept"):
        tma.read_receipt(path)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("order.json", '{"ids": null}', "expected a list"),
        ("order.json", '{"ids": 5}', "expected a list"),
        *(("order.receipt.json", damage, "") for damage in ("", "{}", '{"method": 1}', "[]")),
    ],
)
def test_a_damaged_file_is_named(
    arranged: tma.Arranged, tmp_path: Path, name: str, damage: str, words: str
) -> None:
    path = tmp_path / "order.json"
    arranged.save(path)
    (tmp_path / name).write_text(damage, "utf-8")
    with pytest.raises(DataError, match=rf"order\.json and its receipt cannot be read: .*{words}"):
        tma.read_receipt(path)
