"""Rows before they are touched."""

from __future__ import annotations

import math
import time

import pytest
import torch

from schemas.rows import initial_rows, splitmix64


def test_splitmix64_gives_the_published_sequence() -> None:
    """The first outputs for seed 1234567, as in the reference implementation (Vigna, splitmix64.c; Rosetta Code)."""
    golden = 0x9E3779B97F4A7C15 - 2**64
    states = torch.tensor([1234567]) + torch.arange(5) * golden
    expected = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]
    assert [int(z) % 2**64 for z in splitmix64(states)] == expected


def by_hand(row: int, column: int, scale: float, seed: int) -> float:
    """The same from the definition, in Python's unbounded integers."""

    def mixed(state: int) -> int:
        z = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    drawn = mixed((row * 2**16 + column) * 0x9E3779B97F4A7C15 + mixed(seed)) >> 40
    signed = drawn - 2**24 if drawn >= 2**23 else drawn
    return (2 * signed + 1) / 2**24 * math.sqrt(3) * scale


def test_a_row_is_what_its_definition_says() -> None:
    """First-order weight 0, then one uniform number per column, for small and large row numbers and seeds."""
    for seed in (0, 1, 2**40):
        rows = torch.tensor([0, 1, 77, 2**30 - 1])
        got = initial_rows(rows, 4, 1, 0.01, seed)
        expected = [[0.0, *(by_hand(int(row), column, 0.01, seed) for column in (1, 2, 3))] for row in rows]
        torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-6, atol=0)


def test_rows_do_not_change() -> None:
    """Pinned to the bit: with other numbers here, every stored snapshot would be read wrongly."""
    got = initial_rows(torch.tensor([0, 12345, 2**20 - 1]), 3, 1, 0.01, 1).view(torch.int32)
    assert got.tolist() == PINNED


def test_a_row_does_not_depend_on_its_company() -> None:
    """All at once, one by one, in another order, twice: the same bits."""
    rows = torch.tensor([5, 3, 900, 3, 0])
    together = initial_rows(rows, 11, 1, 0.01, 7)
    for place, row in enumerate(rows):
        assert torch.equal(initial_rows(row[None], 11, 1, 0.01, 7)[0], together[place])


def test_moments_and_independence() -> None:
    """Mean 0, standard deviation as asked, no correlation between columns, neighbours or seeds, over 2^18 rows."""
    rows = torch.arange(2**18)
    got = initial_rows(rows, 5, 1, 0.02, 1).double()
    factors = got[:, 1:]
    assert not got[:, 0].any()
    error = 0.02 / math.sqrt(2**18)
    assert factors.mean(0).abs().max() < 5 * error
    torch.testing.assert_close(factors.std(0), torch.full((4,), 0.02, dtype=torch.float64), rtol=0.01, atol=0)
    other = initial_rows(rows, 5, 1, 0.02, 2).double()[:, 1:]
    pairs = torch.corrcoef(torch.cat([factors[1:].T, factors[:-1].T, other[1:].T]))
    assert (pairs - torch.eye(12)).abs().max() < 5 / math.sqrt(2**18)


def test_a_million_rows_are_made_in_well_under_a_second() -> None:
    """The first touch of a row costs next to nothing. On one thread: two that share a busy core wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    initial_rows(torch.arange(2**20), 11, 1, 0.01, 1)
    taken = time.process_time() - start
    torch.set_num_threads(threads)
    assert taken < 0.8  # 0.11 s on a quiet machine


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_bits() -> None:
    """Integer arithmetic and one product: nothing to round differently."""
    rows = torch.randint(0, 2**30, (10_000,))
    assert torch.equal(initial_rows(rows.cuda(), 11, 1, 0.01, 1).cpu(), initial_rows(rows, 11, 1, 0.01, 1))


PINNED = [[0, -1157619880, 986545385], [0, 999948522, -1140724524], [0, 1015162522, 1012022756]]
