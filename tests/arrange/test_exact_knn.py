from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tests import reference
from tests.conftest import embeddings, small_lists, unit
from tma.arrange import exact_knn
from tma.arrange.distances import row_distances
from tma.arrange.exact_knn import (
    UNIT,
    Factor,
    Product,
    UnitRows,
    exact_keys,
    nearest_blocks,
    nearest_lists,
)

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

BFLOAT16 = Product("cpu", torch.bfloat16)
FLOAT32 = Product("cpu", torch.float32)
FLOAT64 = Product("cpu", torch.float64)


def random_pair(n: int, m: int, d: int, seed: int = 0) -> Pair:
    """Random rows of which a tenth are copies, and a tenth differ from another in the last bit."""
    random = np.random.default_rng(seed)
    train = unit(random.standard_normal((n, d)))
    train[random.integers(0, n, n // 10)] = train[random.integers(0, n, n // 10)]
    nearly, of = random.integers(0, n, (2, n // 10))
    train[nearly] = np.nextafter(train[of], np.float32(2))
    return train, unit(random.standard_normal((m, d)))


def whole_order(train: NDArray[Any], test: NDArray[Any], *, farthest: bool = False) -> list[int]:
    rounds = tma.test_centric_rounds(train, test, farthest=farthest, device="cpu")
    return np.concatenate(rounds).tolist()


@pytest.mark.parametrize(
    "product", [BFLOAT16, FLOAT32, FLOAT64], ids=["bfloat16", "float32", "float64"]
)
@pytest.mark.parametrize("width", [1, 7, 64, 384])
def test_the_proven_error_bounds_the_error(product: Product, width: int) -> None:
    train, test = random_pair(500, 40, width)
    train[:40] = test  # the largest products
    scores, error = product.scores(*(product.factor(torch.from_numpy(x)) for x in (train, test)))
    exact = train.astype(np.longdouble) @ test.astype(np.longdouble).T
    off = np.abs(scores.double().numpy() - exact) - product.rounding * np.abs(exact) * 1.01
    assert off.max() <= error
    assert error < 0.01


def crowded(seed: int, width: int = 64, spread: float = 2e-3) -> Pair:
    """Rows that stand so close that approximate similarities put them in a wrong sequence; most of
    them after the first block, and the nearest last.
    """
    random = np.random.default_rng(seed)
    centre = random.standard_normal(width) * (1 if seed % 2 else -1)
    noise = random.standard_normal((600, width)) * spread * np.linalg.norm(centre) / width**0.5
    away = np.linspace(3, 1, 600)[:, None] if seed % 3 else 1.0
    train = unit(centre + noise * away)
    train[::7] = train[3]
    test = unit(centre + random.standard_normal((6, width)) * spread * 5)
    if seed % 4 == 3:
        test = -test  # all similarities negative
    return train, test


def all_keys(train: NDArray[np.float32], test: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.stack([exact_keys(train, y[None]) for y in test])


@pytest.mark.parametrize("product", [BFLOAT16, FLOAT32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("spread", [1e-6, 1e-4, 2e-3, 3e-2])
def test_lists_of_rows_that_approximations_cannot_tell_apart(
    product: Product, spread: float
) -> None:
    for seed in range(12):
        train, test = crowded(seed, spread=spread)
        expected = np.argsort(-all_keys(train, test), axis=1, kind="stable")[:, :4]
        for block in (60, 600, 6000):
            with small_lists(block):
                rows = UnitRows(train, "X")
                ranked = nearest_lists(rows, torch.from_numpy(test), None, 4, product)
            np.testing.assert_array_equal(ranked, expected)


@pytest.mark.parametrize("farthest", [False, True])
@pytest.mark.parametrize("spread", [1e-7, 1e-5, 1e-4])
def test_extremes_of_rows_that_approximations_cannot_tell_apart(
    farthest: bool, spread: float
) -> None:
    kind = "max" if farthest else "min"
    for seed in range(4):
        train, test = crowded(seed, spread=spread)
        train = train[:80]
        found = list(nearest_blocks(UnitRows(train, "X"), test, farthest=farthest))
        distances = reference.cosine_distances(train, test)
        best = (distances if not farthest else -distances).argmin(axis=1)
        np.testing.assert_array_equal(np.concatenate([best for _, best, _ in found]), best)
        euclidean = getattr(reference.euclidean_distances(train, test), kind)(axis=1)
        of_rows = row_distances(train, test, f"euclidean_{kind}")
        np.testing.assert_allclose(of_rows, euclidean, rtol=0, atol=1e-15)
        average = reference.euclidean_distances(train, test).mean(axis=1)
        of_rows = row_distances(train, test, "euclidean_avg")
        np.testing.assert_allclose(of_rows, average, rtol=0, atol=1e-13)


class Adversary(Product):
    """A product that errs by all it may, in a sequence of its own."""

    def factor(self, rows: torch.Tensor) -> Factor:
        return rows, 0.0

    def scores(
        self, x: Factor, y: Factor, room: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, float]:
        exact = x[0].double() @ y[0].double().T
        random = np.random.default_rng(int(exact.abs().sum() * 1e6))
        error = 10.0 ** random.uniform(-6, -1.5)
        signs = torch.from_numpy(random.choice([-1, 1, 0.3], tuple(exact.shape)))
        return (exact + signs * error * 0.999999).to(self.dtype), error + 2e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("crowded_from", [1, 4, 100])
@pytest.mark.parametrize("block", [50, 999, 2**22])
def test_lists_are_exact_for_every_product_within_its_error(
    dtype: torch.dtype, crowded_from: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_knn, "_CROWDED", crowded_from)
    monkeypatch.setattr(exact_knn, "BLOCK", block)
    monkeypatch.setattr(exact_knn, "Product", lambda device, _: Adversary(device, dtype))
    for seed in range(60):
        train, test = crowded(seed, width=8, spread=10.0 ** -(seed % 5))
        train = train[: 40 + seed]
        keys = all_keys(train, test)
        k = 1 + seed % 20
        ranked = nearest_lists(
            UnitRows(train, "X"), torch.from_numpy(test), None, k, Adversary("cpu", dtype)
        )
        expected = np.argsort(-keys, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(ranked, expected)
        if dtype == torch.float32:
            found = nearest_blocks(UnitRows(train, "X"), test)
            best = np.concatenate([best for _, best, _ in found])
            np.testing.assert_array_equal(best, keys.argmax(axis=0))


def test_keys_are_sums_that_no_sequence_changes() -> None:
    x, y = random_pair(2000, 2000, 384)
    products = (x.astype(np.float64) * y + 3) - 3
    shuffled = products[:, np.random.default_rng(0).permutation(384)]
    assert (np.cumsum(products, axis=1)[:, -1] == np.cumsum(shuffled, axis=1)[:, -1]).all()
    keys = np.rint(np.cumsum(products, axis=1)[:, -1] * 1e10)
    for rows in (y, y.astype(np.float64)):
        np.testing.assert_array_equal(exact_keys(x, rows), keys)


def test_rows_of_every_block_are_checked() -> None:
    train, test = random_pair(300, 5, 8)
    train[250] *= 1.01
    with small_lists(block=50), pytest.raises(ValueError, match=r"X\[250\] has length 1.01"):
        tma.test_centric_rounds(train, test)
    with pytest.raises(ValueError, match=r"X\[250\] has length 1.01"):
        tma.test_centric_rounds(train, test, limit=0)


def test_torch_settings_of_the_caller_do_not_matter() -> None:
    train, test = crowded(1, width=384, spread=1e-4)
    orders = [tma.arrange(name, train, test) for name in ("tma_min", "nearest")]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            again = [tma.arrange(name, train, test) for name in ("tma_min", "nearest")]
    finally:
        torch.set_float32_matmul_precision(before)
    for one, other in zip(orders, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_equal_rows_do_not_fill_the_memory_with_pairs() -> None:
    train = np.repeat(unit(np.ones((1, 8))), 3000, axis=0)
    with small_lists(block=256):
        ranked = nearest_lists(UnitRows(train, "X"), torch.from_numpy(train[:2]), None, 5, FLOAT32)
    assert ranked.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("farthest", [False, True])
@pytest.mark.parametrize("pair", [random_pair(2000, 30, 40), crowded(2, spread=1e-4)])
def test_the_order_is_the_same_for_every_block_thread_count_and_precision(
    pair: Pair, farthest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = pair
    expected = whole_order(train, test, farthest=farthest)
    assert sorted(expected) == [*range(len(train))]
    threads = torch.get_num_threads()
    try:
        for count, block, product in (
            (1, 2**22, FLOAT32),
            (2, 999, BFLOAT16),
            (3, 100_000, FLOAT32),
            (1, 31, BFLOAT16),
        ):
            torch.set_num_threads(count)
            monkeypatch.setattr(exact_knn, "BLOCK", block)
            monkeypatch.setattr(Product, "on", classmethod(lambda _, __, p=product: p))
            assert whole_order(train, test, farthest=farthest) == expected
            with small_lists(block):
                assert whole_order(train, test, farthest=farthest) == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("n", "m", "d"), [(2000, 30, 40), (100_000, 1000, 384)])
def test_a_gpu_gives_the_same_order(n: int, m: int, d: int) -> None:
    train, test = random_pair(n, m, d)
    for name in ("tma_nft", "nearest", "tma_min"):
        on = [tma.arrange(name, train, test, device=device) for device in ("cpu", "cuda")]
        np.testing.assert_array_equal(*on)


def test_a_memory_map_gives_the_same_rounds(tmp_path: Path) -> None:
    train, test = random_pair(3000, 10, 16)
    np.save(tmp_path / "rows.npy", train)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert whole_order(mapped, test) == whole_order(train, test)


def test_other_floating_types_and_layouts_give_the_order_of_float32_rows() -> None:
    train, test = random_pair(200, 5, 8)
    for dtype in (np.float16, np.float64):
        given = train.astype(dtype), test.astype(dtype)
        rounded = [rows.astype(np.float32) for rows in given]
        assert whole_order(*given) == whole_order(*rounded)
    for view in (train[::-1], train[::2], np.asfortranarray(train)):
        assert whole_order(view, test) == whole_order(np.ascontiguousarray(view), test)


@settings(max_examples=80, deadline=None)
@given(embeddings(), st.booleans())
def test_the_nearest_test_row_equals_the_reference(pair: Pair, farthest: bool) -> None:
    distances = reference.cosine_distances(*pair)
    found = list(nearest_blocks(UnitRows(pair[0], "X"), pair[1], farthest=farthest))
    best = np.concatenate([best for _, best, _ in found])
    key = np.concatenate([key for _, _, key in found])
    expected = (distances if not farthest else -distances).argmin(axis=1)
    np.testing.assert_array_equal(best, expected)
    at = np.arange(len(best))
    np.testing.assert_allclose(-key / UNIT, distances[at, expected], rtol=0, atol=1.01e-10)
