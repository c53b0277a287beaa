"""DeepFM against its equations written out."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.config import ModelConfig
from schemas.errors import ConfigError, ShapeError
from schemas.models import RowModel, build
from schemas.models.layers import Dropout, fm_second_order
from schemas.rows import initial_rows


def seeded(seed: int) -> torch.Generator:
    """Random numbers of its own."""
    return torch.Generator().manual_seed(seed)


def paper_s(**settings: Any) -> ModelConfig:
    """Without what the paper's model does not have."""
    return ModelConfig(statistics=False, **settings)


def a_model(fields: int, **changes: object) -> RowModel:
    """In float64, with a bias that is not 0."""
    settings = {"factors": 4, "hidden": (8, 6), "bits": 10, "seed": 3, **changes}
    model = build(paper_s(**settings), fields).double()
    with torch.no_grad():
        model.bias.fill_(0.3)
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.add_(0.1)
    return model


@pytest.mark.parametrize(("fields", "factors"), [(1, 4), (2, 1), (39, 16)])
def test_fm_equals_the_sum_over_all_pairs(fields: int, factors: int) -> None:
    """The linear-time identity gives what the written-out double loop gives."""
    v = torch.randn(5, fields, factors, dtype=torch.float64, generator=seeded(7))
    pairs = combinations(range(fields), 2)
    expected = sum(((v[:, i] * v[:, j]).sum(-1) for i, j in pairs), v.new_zeros(5))
    torch.testing.assert_close(fm_second_order(v), expected)


def written_out(model: RowModel, rows: Tensor, values: Tensor) -> Tensor:
    """The paper's equations, example by example, one scalar after the other."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    layers = sorted({int(name.split(".")[2]) for name in weights if name.startswith("mlp")})
    logits = []
    for row, x in zip(rows, values, strict=True):
        scaled = [[float(x[i]) * float(v) for v in row[i, 1:]] for i in range(len(row))]
        logit = float(weights["bias"]) + sum(float(row[i, 0]) * float(x[i]) for i in range(len(row)))
        for i, j in combinations(range(len(row)), 2):
            logit += sum(a * b for a, b in zip(scaled[i], scaled[j], strict=True))
        signal = [number for field in scaled for number in field]
        for layer in layers:
            matrix = weights[f"mlp.layers.{layer}.weight"].tolist()
            bias = weights.get(f"mlp.layers.{layer}.bias")
            offset = [0.0] * len(matrix) if bias is None else bias.tolist()
            signal = [sum(w * s for w, s in zip(line, signal, strict=True)) + b
                      for line, b in zip(matrix, offset, strict=True)]
            if layer != layers[-1]:
                signal = [max(0.0, s) for s in signal]
        logits.append(logit + signal[0])
    return torch.tensor(logits, dtype=torch.float64)


@pytest.mark.parametrize("fields", [1, 2, 39])
@pytest.mark.parametrize("hidden", [(), (5,), (8, 6)])
def test_deepfm_is_what_the_paper_says(fields: int, hidden: tuple[int, ...]) -> None:
    """First order, all pairs, and the network over the same factors, in float64 to 1e-10; numbers scale both parts."""
    model = a_model(fields, hidden=hidden)
    rows = torch.randn(4, fields, 5, dtype=torch.float64, generator=seeded(1))
    values = torch.randn(4, fields, dtype=torch.float64, generator=seeded(2))
    torch.testing.assert_close(model(rows, values), written_out(model, rows, values), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(rows, None), model(rows, torch.ones_like(values)), rtol=0, atol=0)


@pytest.mark.parametrize("fields", [1, 2, 39])
def test_gradients_agree_with_finite_differences(fields: int) -> None:
    """By rows, by values and by every dense weight."""
    model = a_model(fields, hidden=(3,), factors=2)
    rows = torch.randn(2, fields, 3, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    values = torch.randn(2, fields, dtype=torch.float64, generator=seeded(2)).requires_grad_()
    torch.autograd.gradcheck(model, (rows, values))
    names = [name for name, _ in model.named_parameters()]

    def by_weights(*weights: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (rows.detach(), None))
        return out

    torch.autograd.gradcheck(by_weights, tuple(weight.detach().requires_grad_() for weight in model.parameters()))


@pytest.mark.parametrize(("fields", "factors", "hidden"), [(39, 10, (400, 400, 400)), (2, 1, (3,)), (7, 4, ())])
def test_parameter_count(fields: int, factors: int, hidden: tuple[int, ...]) -> None:
    """1 + Σ (inputs + 1)·width over the hidden layers + the last width; a row has 1 + K floats."""
    model = a_model(fields, factors=factors, hidden=hidden)
    expected, inputs = 1, fields * factors
    for width in hidden:
        expected, inputs = expected + (inputs + 1) * width, width
    assert sum(weight.numel() for weight in model.parameters()) == expected + inputs
    assert model.row_width == 1 + factors


def test_the_seed_makes_the_model_and_nothing_else_does() -> None:
    """Same seed, same bits, whatever was drawn before; another seed, other weights."""
    torch.manual_seed(1)
    first = build(ModelConfig(hidden=(8,)), 3).state_dict()
    state = torch.get_rng_state()
    second = build(ModelConfig(hidden=(8,)), 3).state_dict()
    other = build(ModelConfig(hidden=(8,), seed=2), 3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mlp.layers.0.weight"], other["mlp.layers.0.weight"])


def test_the_first_layers_keep_the_size_of_a_signal() -> None:
    """He initialisation: the mean square of a layer's output equals its input's, over three layers of 400."""
    model = build(paper_s(hidden=(400, 400, 400)), 39)
    signal = torch.randn(500, 390, generator=seeded(5))
    for layer in list(model.mlp.layers)[:-1]:  # type: ignore[union-attr,arg-type]
        signal = layer(signal)
    assert signal.square().mean().item() == pytest.approx(1, rel=0.25)  # relu keeps E[x²]/2 of a sum that doubled it


def test_new_rows_are_the_format_s() -> None:
    """Trainer and scorer fill an untouched row alike."""
    model = build(paper_s(factors=4, seed=9, init_scale=0.02), 3)
    rows = torch.tensor([4, 2])
    assert torch.equal(model.new_rows(rows), initial_rows(rows, 5, 1, 0.02, 9))


def test_dropout_drops_by_its_generator_and_only_when_learning() -> None:
    """A share of `chance` is 0, the rest scaled so that the mean stays; same state, same neurons."""
    layer = Dropout(0.25)
    layer.generator = seeded(1)
    x = torch.ones(100, 400)
    first = layer(x)
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert first.max().item() == pytest.approx(1 / 0.75)
    layer.generator = seeded(1)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)


def test_wrong_shapes_and_names_are_refused() -> None:
    """With what was needed and what came; the nearest architecture is named."""
    model = a_model(3)
    with pytest.raises(ShapeError, match=r"\(B, 3, 5\), got \(2, 4, 5\)"):
        model(torch.zeros(2, 4, 5, dtype=torch.float64), None)
    with pytest.raises(ShapeError, match="F>=1"):
        fm_second_order(torch.zeros(2, 0, 3))
    with pytest.raises(ConfigError, match="nearest: deepfm"):
        build(ModelConfig(architecture="DeepFN"), 3)
    with pytest.raises(ConfigError, match="at least one field"):
        build(ModelConfig(), 0)
