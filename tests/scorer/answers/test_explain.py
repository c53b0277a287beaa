"""Explanations against the formulas, written out, and against leaving fields out by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from schemas.config import ModelConfig
from schemas.models import build
from schemas.models.base import RowModel
from scorer.answers.explain import explain

FIELDS, K = 5, 3
SIDES = ((0, 2), (1, 4))


def a_model(architecture: str, crosses: int = 0, statistics: bool = False) -> RowModel:
    config = ModelConfig(
        architecture=architecture, bits=8, factors=K, hidden=(7, 4), init_scale=0.4, statistics=statistics, seed=3
    )
    sides = SIDES if crosses else ()
    net = build(config, FIELDS, crosses, (), sides).double().eval().requires_grad_(False)
    random = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.5)
    return net


def an_item(net: RowModel, crosses: int = 0, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(FIELDS + crosses, net.row_width, generator=random, dtype=torch.float64)
    if net.counted:
        seen = torch.randint(1, 50, (FIELDS + crosses,), generator=random)
        rows[:, -2], rows[:, -1] = seen, seen // 3
    values = torch.rand(FIELDS + crosses, generator=random, dtype=torch.float64) + 0.5
    values[FIELDS:] = 1
    return rows, values


def without(net: RowModel, rows, values, *gone: int) -> float:
    """The logit of a copy in which those fields' rows, and those of their crosses, are zeros."""
    rows, values = rows.clone(), values.clone()
    for at in gone:
        rows[at], values[at] = 0, 0
    for place, (left, right) in enumerate(SIDES[: len(rows) - FIELDS]):
        if left in gone or right in gone:
            rows[FIELDS + place] = 0
    return float(net(rows[None], values[None]))


@pytest.mark.parametrize("crosses", [0, 2])
def test_logistic_regression_is_its_weights(crosses):
    """Each field adds its weight times its value, each pair the weight of its cross, and nothing is left over."""
    net = a_model("lr", crosses)
    rows, values = an_item(net, crosses)
    found = explain(net, rows, values, SIDES[:crosses])
    np.testing.assert_allclose(found.own, (rows[:FIELDS, 0] * values[:FIELDS]).numpy(), atol=1e-12)
    expected = np.zeros((FIELDS, FIELDS))
    for place, (left, right) in enumerate(SIDES[:crosses]):
        expected[left, right] = rows[FIELDS + place, 0]
    np.testing.assert_allclose(found.pairs, [expected[i, j] for i, j in combinations(range(FIELDS), 2)], atol=1e-12)
    assert found.base == pytest.approx(float(net.bias), abs=1e-12)
    assert found.rest == pytest.approx(0, abs=1e-12)


def test_a_factorization_machine_is_its_weights_and_inner_products():
    """Fields add w_i x_i, pairs <V_i, V_j> x_i x_j, written out in a double loop; the bias is the base."""
    net = a_model("fm")
    rows, values = an_item(net)
    found = explain(net, rows, values, ())
    w, v, x = rows[:, 0].numpy(), rows[:, 1:].numpy(), values.numpy()
    np.testing.assert_allclose(found.own, w * x, atol=1e-12)
    inner = [float(v[i] @ v[j]) * x[i] * x[j] for i, j in combinations(range(FIELDS), 2)]
    np.testing.assert_allclose(found.pairs, inner, atol=1e-12)
    assert found.base == pytest.approx(float(net.bias), abs=1e-12)
    assert found.rest == pytest.approx(0, abs=1e-12)
    assert found.logit == pytest.approx(float(net.bias) + (w * x).sum() + sum(inner), abs=1e-12)


@pytest.mark.parametrize(("architecture", "crosses", "statistics"), [
    ("deepfm", 0, False), ("deepfm", 2, True), ("ffm", 0, False), ("dcn_v2", 0, False), ("nfm", 0, False), ("afm", 0, False),
    ("wide_deep", 0, False), ("pnn", 0, False),
])
def test_what_is_said_is_what_leaving_out_by_hand_gives(architecture, crosses, statistics):
    """For each field and pair, from logits of copies with zeros; and the parts add up to the logit."""
    net = a_model(architecture, crosses, statistics)
    rows, values = an_item(net, crosses)
    found = explain(net, rows, values, SIDES[:crosses])
    whole = float(net(rows[None], values[None]))
    each = [without(net, rows, values, at) for at in range(FIELDS)]
    assert found.logit == pytest.approx(whole, abs=1e-9)
    assert found.base == pytest.approx(without(net, rows, values, *range(FIELDS)), abs=1e-9)
    np.testing.assert_allclose(found.without, [whole - one for one in each], atol=1e-9)
    pairs = {(i, j): whole - each[i] - each[j] + without(net, rows, values, i, j) for i, j in combinations(range(FIELDS), 2)}
    np.testing.assert_allclose(found.pairs, list(pairs.values()), atol=1e-9)
    for at in range(FIELDS):
        own = whole - each[at] - sum(pair for sides, pair in pairs.items() if at in sides)
        assert found.own[at] == pytest.approx(own, abs=1e-9)
    assert found.base + found.own.sum() + found.pairs.sum() + found.rest == pytest.approx(whole, abs=1e-9)
    if architecture == "ffm":
        assert found.rest == pytest.approx(0, abs=1e-9)
    else:
        assert abs(found.rest) > 1e-6


def test_one_field_has_no_pairs():
    """All that is not the bias is its own."""
    net = build(ModelConfig(architecture="lr", bits=8), 1).double().eval().requires_grad_(False)
    found = explain(net, torch.tensor([[0.7]], dtype=torch.float64), None, ())
    assert found.pairs.shape == (0,)
    assert (found.own.tolist(), found.without.tolist(), found.rest) == ([pytest.approx(0.7)], [pytest.approx(0.7)], 0)
