from __future__ import annotations

import pytest
import torch

from schemas.models import RowModel, build
from schemas.models.deepfm import DeepFM
from schemas.models.native import multiplies_bf16
from scorer.answers.network import SlateDeepFM, for_slates
from tests.scorer.lineage import small

F, B, K = 12, 50, 10
CONTEXT = [place % 3 == 0 for place in range(F)]


def made(**values) -> RowModel:
    return build(small(factors=K, hidden=(400, 400), **values), F).eval().requires_grad_(False)


def in_bf16(net: DeepFM, rows: torch.Tensor) -> torch.Tensor:
    """DeepFM with the inputs and weights of its hidden layers rounded to bf16, all sums in double."""
    v = rows[:, :, 1:].double()
    second = 0.5 * (v.sum(dim=1).square() - v.square().sum(dim=1)).sum(dim=1)
    x = v.flatten(1)
    assert isinstance(net.mlp.layers, torch.nn.Sequential)
    *hidden, last = (layer for layer in net.mlp.layers if isinstance(layer, torch.nn.Linear))
    for layer in hidden:
        x = x.bfloat16().double() @ layer.weight.bfloat16().double().T + layer.bias.bfloat16().double()
        x = x.relu().bfloat16().double()
    found: torch.Tensor = net.bias.double() + rows[:, :, 0].double().sum(dim=1) + second + x @ last.weight.double()[0]
    return found.float()


def slate(width: int) -> torch.Tensor:
    """(B, F, W): rows of one slate, whose context agrees."""
    rows = torch.randn(B, F, width, generator=torch.Generator().manual_seed(3)) * 0.3
    rows[:, CONTEXT] = rows[:1, CONTEXT]
    return rows.abs() if width > 1 + K else rows


@pytest.mark.parametrize("values", [
    {}, {"statistics": True}, {"heads": 3}, {"architecture": "wide_deep"}, {"architecture": "dcn_v2"}, {"hidden": ()},
])
def test_a_slates_context_once_is_the_same_to_a_millionth(values):
    """In float32, for each model, whatever is made once and whatever is not."""
    net = made(**({"statistics": False} | values)) if "hidden" not in values else build(small(factors=K, hidden=()), F).eval()
    rows = slate(net.row_width)
    with torch.inference_mode():
        expected = net(rows, None)
        found = for_slates(net, CONTEXT, "fp32")(rows, None)
    torch.testing.assert_close(found.sigmoid(), expected.sigmoid(), atol=1e-6, rtol=0)


def test_numbers_multiply_the_rows_of_a_slate_too():
    """With values, the context's among them, the split network gives what the model gives."""
    rows = slate(1 + K)
    values = torch.rand(B, F, generator=torch.Generator().manual_seed(5)) + 0.5
    values[:, CONTEXT] = values[:1, CONTEXT]
    with torch.inference_mode():
        expected = made(statistics=False)(rows, values)
        net = for_slates(made(statistics=False), CONTEXT, "fp32")
        found = net(rows, values)
    assert isinstance(net, SlateDeepFM)
    torch.testing.assert_close(found.sigmoid(), expected.sigmoid(), atol=1e-6, rtol=0)



@pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="this machine computes bf16 by other instructions")
@pytest.mark.parametrize("fused", [False, True])
def test_bf16_products_move_a_probability_by_less_than_two_thousandths(fused, monkeypatch):
    """Of networks as wide as the paper's, with oneDNN's own layer or torch's; small ones stay in float32 unless they are asked
    not to."""
    monkeypatch.setattr("scorer.answers.network.FUSED", fused)
    rows = slate(1 + K)
    with torch.inference_mode():
        expected = made()(rows, None)
        found = for_slates(made(), CONTEXT, "auto")(rows, None)
        rows_of_3 = slate(4)
        narrow, narrow_expected = (
            for_slates(build(small(factors=3), F).eval().requires_grad_(False), CONTEXT, precision)(rows_of_3, None)
            for precision in ("auto", "fp32")
        )
        wide = made()
        assert isinstance(wide, DeepFM)
        by_hand = in_bf16(wide, rows)
    torch.testing.assert_close(found.sigmoid(), by_hand.sigmoid(), atol=1e-3, rtol=0)
    error = (found.sigmoid() - expected.sigmoid()).abs().max()
    assert 0 < error < 2e-3
    assert torch.equal(narrow, narrow_expected)
