from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.bags import Bags
from schemas.errors import ShapeError
from schemas.fields import Field
from schemas.models.pooling import pool

FIELDS = (
    Field(name="one", number=1, kind="categorical", side="item"),
    Field(name="mean", number=2, kind="set", side="item", pool="mean"),
    Field(name="sum", number=3, kind="set", side="item", pool="sum"),
    Field(name="amount", number=4, kind="numeric", side="item", transform="raw"),
)


def drawn(rows: int, with_values: bool = True, with_lengths: bool = True) -> Bags:
    random = np.random.default_rng(rows)
    lengths = np.ones((rows, 4), np.uint16)
    if with_lengths:
        lengths[:, 1:3] = random.integers(1, 5, (rows, 2))
    flat = lengths.reshape(-1)
    values = None
    if with_values:
        per_bag = np.ones((rows, 4), np.float32)
        per_bag[:, 3] = random.normal(size=rows)
        values = np.repeat(per_bag.reshape(-1), flat)
    return Bags(4, random.integers(0, 99, int(flat.sum())).astype(np.uint64), values, flat if with_lengths else None)


@pytest.mark.parametrize("with_values", [True, False])
@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("rows", [1, 7])
def test_pooled_rows_are_the_mean_or_the_sum_of_each_bag(rows, with_values, with_lengths):
    """What a double loop over rows and fields gives, in shape and value."""
    bags = drawn(rows, with_values, with_lengths)
    looked_up = torch.randn(len(bags.ids), 3, generator=torch.Generator().manual_seed(1))
    pooled, values = pool(looked_up, bags, FIELDS)
    assert pooled.shape == (rows, 4, 3)
    at = 0
    for place, length in enumerate(bags.all_lengths().tolist()):
        row, column = divmod(place, 4)
        part = looked_up[at : at + length]
        expected = part.mean(dim=0) if column == 1 else part.sum(dim=0)
        torch.testing.assert_close(pooled[row, column], expected)
        if bags.values is not None:
            assert values is not None
            assert values[row, column] == bags.values[at]
        at += length
    assert (values is None) == (not with_values)


def test_every_row_of_a_bag_has_its_share_of_the_gradient():
    """1/n in a mean, 1 in a sum."""
    bags = drawn(5)
    looked_up = torch.zeros(len(bags.ids), 2, requires_grad=True)
    pool(looked_up, bags, FIELDS)[0].sum().backward()
    lengths = bags.all_lengths()
    share = np.where(np.arange(20) % 4 == 1, 1 / lengths, 1)
    assert looked_up.grad is not None
    torch.testing.assert_close(looked_up.grad[:, 0], torch.from_numpy(np.repeat(share, lengths)).float())


def test_rows_that_do_not_fit_the_bags_are_refused():
    """The error names both sides."""
    with pytest.raises(ShapeError, match=r"got \(3, 2\) for 4 ids, 4 fields for 4"):
        pool(torch.zeros(3, 2), drawn(1, False, False), FIELDS)


def test_counts_are_averaged_even_where_weights_are_summed():
    """The last columns, if they are statistics: of a set always the mean of its rows."""
    bags = drawn(6)
    looked_up = torch.randn(len(bags.ids), 5, generator=torch.Generator().manual_seed(1))
    pooled, _ = pool(looked_up, bags, FIELDS, counted=2)
    plain, _ = pool(looked_up, bags, FIELDS)
    torch.testing.assert_close(pooled[:, :, :3], plain[:, :, :3], rtol=0, atol=0)
    at = 0
    for place, length in enumerate(bags.all_lengths().tolist()):
        torch.testing.assert_close(pooled[place // 4, place % 4, 3:], looked_up[at : at + length, 3:].mean(dim=0))
        at += length
