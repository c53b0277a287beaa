"""Every model against its formula written out: values, gradients, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.bags import Bags
from schemas.config import ModelConfig
from schemas.errors import ConfigError, ShapeError
from schemas.fields import parse
from schemas.models import MODELS, RowModel, build
from schemas.models.activations import ACTIVATIONS, activation
from schemas.models.dcn import Cross
from schemas.models.ffm import ffm_second_order
from schemas.models.layers import bi_interaction, fm_second_order
from schemas.models.normalisation import BatchNorm
from schemas.models.pooling import pool
from tests.kit import brute_models

EXACT: Any = {"rtol": 1e-10, "atol": 1e-10}
STEP = 1e-30   # of the complex step: nothing is subtracted, so nothing is lost
VARIANTS: list[dict[str, Any]] = [
    *({"architecture": name} for name in MODELS),
    *({"architecture": name, "product": product} for name in ("pnn", "pnn_pairs") for product in ("outer", "both")),
    *({"architecture": name, "hidden": ()} for name in ("deepfm", "nfm", "pnn_pairs", "dcn", "dcn_v2_stacked")),
    *({"architecture": "deepfm", "activation": name} for name in ("tanh", "prelu", "dice")),
    {"architecture": "pnn", "activation": "tanh", "hidden": (3,)}, {"architecture": "fnn", "fnn_pretrain_rows": 0},
    {"architecture": "nfm", "batch_norm": True}, {"architecture": "deepfm", "batch_norm": True, "activation": "dice"},
    {"architecture": "dcn", "cross_layers": 0},
    {"architecture": "deepfm", "statistics": True}, {"architecture": "deepfm", "statistics": True, "logs": (0,)},
    {"architecture": "deepfm", "heads": 3}, {"architecture": "ffm_stats", "heads": 2, "logs": (0,)},
    {"architecture": "ffm_stats", "logs": (0,)}, {"architecture": "fm", "statistics": True, "logs": (0,)},
]


def named(variant: dict[str, Any]) -> str:
    """For the list of tests."""
    return "-".join(str(value) for value in variant.values())


def a_model(fields: int, **changes: Any) -> RowModel:
    """In float64, scoring, with nothing left at 0 or 1."""
    settings = {"factors": 2, "hidden": (4, 3), "bits": 10, "seed": 3, "attention_factors": 3, "cross_layers": 2,
                "statistics": False, **changes}
    logs = settings.pop("logs", ())
    model = build(ModelConfig(**settings), fields, logs=logs).double().eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.rand(weight.shape, generator=generator, dtype=torch.float64) * 0.4 - 0.2)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) * 0.4)
            if name == "statistics.totals":
                buffer.copy_(torch.tensor([20, 6]))
    return model


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(model: RowModel, rows: Any, values: Any, weights: dict[str, Any]) -> list[complex]:
    """Logits of all examples. rows, values, weights: nested lists."""
    return [brute_models.logit(x, v, weights, model.config, model.beside) for x, v in zip(rows, values, strict=True)]


def listed(tensor: Tensor, direction: Tensor | None = None) -> Any:
    """As nested lists of complex numbers, a tiny imaginary step along `direction` away."""
    moved = tensor.detach().to(torch.complex128)
    return (moved if direction is None else torch.complex(tensor.detach().double(), STEP * direction)).tolist()


def weights_of(model: RowModel, directions: dict[str, Tensor] | None = None) -> dict[str, Any]:
    return {name: listed(weight, (directions or {}).get(name)) for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("fields", [1, 2, 39])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_a_model_is_its_formula_and_so_are_its_gradients(variant: dict[str, Any], fields: int) -> None:
    """Logits, and the gradients by rows, values and every dense weight along random directions, equal the loops' (their
    derivatives by complex step), in float64 to 1e-10; values None are ones (0 for numbers beside the rows)."""
    model = a_model(fields, **variant)
    rows = draw(2, fields, model.row_width, seed=1).requires_grad_()
    values = draw(2, fields, seed=2).requires_grad_()
    logits = model(rows, values)
    expected = by_loops(model, listed(rows), listed(values), weights_of(model))
    torch.testing.assert_close(logits.detach(), torch.tensor([e.real for e in expected], dtype=torch.float64), **EXACT)
    ones = torch.ones_like(values)
    ones[:, model.beside] = 0
    torch.testing.assert_close(model(rows, None), model(rows, ones), rtol=0, atol=0)

    kinds = draw(2, seed=3)
    named_weights = dict(model.named_parameters())
    grads = torch.autograd.grad(
        (logits * kinds).sum(), [rows, values, *named_weights.values()], allow_unused=True, materialize_grads=True
    )
    for seed, what in enumerate(["rows", "values", *named_weights], start=10):
        tensor = {"rows": rows, "values": values, **named_weights}[what]
        direction = draw(*tensor.shape, seed=seed)
        moved = by_loops(
            model,
            listed(rows, direction if what == "rows" else None),
            listed(values, direction if what == "values" else None),
            weights_of(model, {what: direction}),
        )
        slope = sum(float(kind) * one.imag / STEP for kind, one in zip(kinds, moved, strict=True))
        assert float((grads[seed - 10] * direction).sum()) == pytest.approx(slope, rel=1e-10, abs=1e-10), what


KINDS = parse(
    {
        "field": [
            {"name": "one", "number": 1, "kind": "categorical", "side": "context"},
            {"name": "mean", "number": 2, "kind": "set", "side": "item"},
            {"name": "sum", "number": 3, "kind": "set", "side": "item", "pool": "sum"},
            {"name": "raw", "number": 4, "kind": "numeric", "side": "item", "transform": "raw"},
        ]
    },
    "test",
)


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_sets_and_numbers_go_through_every_model(variant: dict[str, Any]) -> None:
    """A one-hot field, a set by its mean, one by its sum and a number, from single ids on, against loops; and each id's
    row gets the gradient that the loops give."""
    model = a_model(4, **variant)
    lengths = np.array([1, 3, 2, 1, 1, 1, 4, 1], np.uint16)
    numbers = np.ones(14, np.float32)
    numbers[[6, 13]] = [2.5, -0.75]
    bags = Bags(4, np.arange(14, dtype=np.uint64), numbers, lengths)
    rows = draw(14, model.row_width, seed=4).requires_grad_()
    logits = model(*pool(rows, bags, KINDS.fields, model.counted))

    def loops(by_id: Any) -> list[complex]:
        means = [False, True, False, False]
        examples = [
            brute_models.pooled(part, lengths, means, model.counted)
            for part, lengths in ((by_id[:7], [1, 3, 2, 1]), (by_id[7:], [1, 1, 4, 1]))
        ]
        return by_loops(model, examples, [[1, 1, 1, 2.5], [1, 1, 1, -0.75]], weights_of(model))

    expected = torch.tensor([one.real for one in loops(listed(rows))], dtype=torch.float64)
    torch.testing.assert_close(logits.detach(), expected, **EXACT)
    [grad] = torch.autograd.grad(logits.sum(), [rows])
    for place in range(14):
        direction = torch.zeros_like(rows)
        direction[place] = draw(model.row_width, seed=place)
        slope = sum(one.imag for one in loops(listed(rows, direction))) / STEP
        assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(("fields", "factors", "hidden"), [(39, 10, (400, 400, 400)), (2, 1, (3,)), (7, 4, (5, 2))])
@pytest.mark.parametrize(
    ("architecture", "product"),
    [*((name, "inner") for name in MODELS), *((name, p) for name in ("pnn", "pnn_pairs") for p in ("outer", "both"))],
)
def test_sizes_are_the_papers(architecture: str, product: str, fields: int, factors: int, hidden: tuple[int, ...]) -> None:
    """Floats of a row, and dense parameters, by the papers' own counting."""
    config = ModelConfig(architecture=architecture, factors=factors, hidden=hidden, product=product, statistics=False)  # type: ignore[arg-type]
    model = build(config, fields)
    dense = sum(weight.numel() for weight in model.parameters())
    assert (model.row_width, dense) == brute_models.parameters(architecture, config, fields)
    fresh = model.new_rows(torch.arange(50))
    assert (fresh[:, : model.first_order] == 0).all()
    learnt = model.row_width - model.counted
    assert (fresh[:, model.first_order : learnt] != 0).all()
    assert (fresh[:, learnt:] == 0).all()


@pytest.mark.parametrize("architecture", MODELS)
def test_the_seed_makes_every_model(architecture: str) -> None:
    """Same seed, same bits, torch's shared random numbers untouched; another seed, other weights where any are drawn."""
    state = torch.get_rng_state()
    first, second, other = (
        build(ModelConfig(architecture=architecture, hidden=(8,), seed=seed), 3).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(weight.isfinite().all() for weight in first.values())
    if any("weight" in name for name in first):
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_models_that_contain_each_other_do() -> None:
    """FM & DNN with equal factors is DeepFM. And an FM is: NFM without layers and with h = 1; AFM with equal attention,
    times the number of pairs; FFM whose factors are the same for every field."""
    fields, k = 5, 3
    rows, values = draw(4, fields, 1 + k, seed=1), draw(4, fields, seed=2)
    fm, deepfm, fm_dnn = (a_model(fields, architecture=name, factors=k) for name in ("fm", "deepfm", "fm_dnn"))
    fm_dnn.load_state_dict(deepfm.state_dict())
    torch.testing.assert_close(fm_dnn(torch.cat([rows, rows[:, :, 1:]], dim=2), values), deepfm(rows, values), **EXACT)

    nfm: Any
    afm: Any
    nfm, afm, ffm = (a_model(fields, architecture=name, factors=k, hidden=()) for name in ("nfm", "afm", "ffm_linear"))
    for model in (nfm, afm, ffm):
        model.bias.data.copy_(fm.bias.data)
    with torch.no_grad():
        nfm.mlp.layers[0].weight.fill_(1)
        afm.h.weight.fill_(0)
        afm.p.fill_(10)
    expected = fm(rows, values)
    torch.testing.assert_close(nfm(rows, values), expected, **EXACT)
    torch.testing.assert_close(afm(rows, values), expected, **EXACT)     # 10 pairs
    spread = torch.cat([rows[:, :, :1], rows[:, :, 1:].repeat(1, 1, fields)], dim=2)
    torch.testing.assert_close(ffm(spread, values), expected, **EXACT)


def test_the_attention_of_an_afm_differs_from_pair_to_pair() -> None:
    """The weights of one example's pairs sum to 1 and are not all equal, as they are where the softmax goes over the
    wrong axis."""
    model: Any = a_model(4, architecture="afm")
    rows = draw(1, 4, 3, seed=1)
    v = rows[0, :, 1:]
    pairs = torch.stack([v[i] * v[j] for i in range(4) for j in range(i + 1, 4)])
    shares = model.h(model.attention(pairs).relu()).softmax(0)[:, 0]
    assert shares.std() > 0.01
    expected = model.bias[0] + rows[0, :, 0].sum() + (shares @ pairs) @ model.p
    torch.testing.assert_close(model(rows, None)[0], expected, **EXACT)


def test_finite_differences_of_the_layers() -> None:
    """bi_interaction, each cross layer and each activation, learning and scoring."""
    generator = torch.Generator().manual_seed(1)
    for function, shape in ((bi_interaction, (2, 3, 4)), (fm_second_order, (2, 3, 4)), (ffm_second_order, (2, 3, 6))):
        assert torch.autograd.gradcheck(function, (draw(*shape, seed=5).requires_grad_(),))
    for full in (False, True):
        cross = Cross(4, full, generator).double()
        assert torch.autograd.gradcheck(cross, (draw(2, 4, seed=1).requires_grad_(), draw(2, 4, seed=2).requires_grad_()))
    for layer in [*(activation(name, 4) for name in ACTIVATIONS), BatchNorm(4)]:
        for learning in (True, False):
            layer.double().train(learning)
            assert torch.autograd.gradcheck(layer, (draw(5, 4, seed=3).requires_grad_(),))


@pytest.mark.parametrize("architecture", MODELS)
def test_finite_differences_of_the_models(architecture: str) -> None:
    """By rows and values, with dropout's neurons held fixed and batch norm learning."""
    model = a_model(3, architecture=architecture, activation="tanh", batch_norm=True, dropout=0.3, fnn_pretrain_rows=0)
    model.train()
    generator = torch.Generator()
    model.draw_from(generator)

    counts = draw(4, 3, model.counted, seed=3).abs()

    def held(rows: Tensor, values: Tensor) -> Tensor:
        generator.manual_seed(1)
        logits: Tensor = model(torch.cat([rows, counts], dim=2), values)
        return logits

    rows, values = draw(4, 3, model.row_width - model.counted, seed=1).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(held, (rows, values))


@pytest.mark.parametrize("architecture", MODELS)
def test_wrong_shapes_are_refused(architecture: str) -> None:
    """With what was needed and what came."""
    model = a_model(3, architecture=architecture)
    width = model.row_width
    with pytest.raises(ShapeError, match=rf"takes \(B, 3, {width}\), got \(2, 4, {width}\)"):
        model(torch.zeros(2, 4, width, dtype=torch.float64), None)
    with pytest.raises(ShapeError, match="takes"):
        model(torch.zeros(2, 3, width + 1, dtype=torch.float64), None)


def test_unknown_names_are_refused_naming_the_nearest() -> None:
    """Architecture, activation, product; a PNN without a layer for its products."""
    with pytest.raises(ConfigError, match=r"model.architecture=ipnn: .*nearest: pnn"):
        build(ModelConfig(architecture="ipnn"), 3)
    with pytest.raises(ConfigError, match=r"model.architecture=DeepFN: .*nearest: deepfm"):
        build(ModelConfig(architecture="DeepFN"), 3)
    with pytest.raises(ConfigError, match=r"model.activation=RELU6: .*nearest: relu"):
        ModelConfig(activation="RELU6")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model.product=iner: .*nearest: inner"):
        ModelConfig(product="iner")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="products of a PNN go into its first layer"):
        build(ModelConfig(architecture="pnn", hidden=()), 3)


@pytest.mark.parametrize("architecture", ["deepfm", "ffm_stats"])
def test_statistics_of_crosses_are_the_formula(architecture: str) -> None:
    """Over four fields and two crosses: logits, and gradients by rows, against loops; a cross's weights get none."""
    sides = ((0, 2), (3, 1))
    config = ModelConfig(architecture=architecture, factors=2, hidden=(4, 3), bits=10, seed=3, statistics=True)
    model = build(config, 4, crosses=2, logs=(1,), sides=sides).double().eval()
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            weight.add_(draw(*weight.shape, seed=seed) * 0.2)
        assert model.statistics is not None
        model.statistics.totals.copy_(torch.tensor([20, 6]))
    learnt, values = draw(3, 6, model.row_width - 2, seed=1), draw(3, 6, seed=2)
    counts = draw(3, 6, 2, seed=3).abs() * 9
    rows = torch.cat([learnt, counts], dim=2).requires_grad_()
    logits = model(rows, values)

    def loops(by_row: Any) -> list[complex]:
        weights = weights_of(model)
        return [
            brute_models.logit(x, v, weights, config, (1,), sides) for x, v in zip(by_row, listed(values), strict=True)
        ]

    expected = torch.tensor([one.real for one in loops(listed(rows))], dtype=torch.float64)
    torch.testing.assert_close(logits.detach(), expected, **EXACT)
    [grad] = torch.autograd.grad(logits.sum(), [rows])
    direction = draw(*rows.shape, seed=4)
    slope = sum(one.imag for one in loops(listed(rows, direction))) / STEP
    assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-10, abs=1e-10)
    assert (grad[:, 4:] == 0).all()
    assert (grad[:, :, -2:] == 0).all()


@pytest.mark.parametrize("architecture", ["deepfm", "ffm_stats", "pnn", "wide_deep"])
def test_heads_answer_for_themselves_while_learning_and_together_when_scoring(architecture: str) -> None:
    """Head h of three gives what a model with that network alone gives; what is scored is the mean of the logits."""
    model = a_model(3, architecture=architecture, heads=3)
    rows = draw(5, 3, model.row_width, seed=4).abs()
    together = model(rows, None)
    each = model.train()(rows, None)
    assert each.shape == (3, 5)
    torch.testing.assert_close(each.mean(dim=0), together, **EXACT)
    alone = a_model(3, architecture=architecture)
    weights = model.state_dict()
    for head, prefix in enumerate(["mlp.layers", "mlp.others.0", "mlp.others.1"]):
        own = {name.replace(prefix, "mlp.layers"): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        alone.load_state_dict({name: own.get(name, weights[name]) for name in alone.state_dict()})
        torch.testing.assert_close(alone(rows, None), each[head], **EXACT)


@pytest.mark.parametrize("architecture", ["lr", "fm", "ffm", "afm", "dcn"])
def test_heads_of_a_model_without_a_network_are_an_error(architecture: str) -> None:
    """Nothing is taken without a word."""
    with pytest.raises(ConfigError, match=f"model.heads=2: {architecture}"):
        build(ModelConfig(architecture=architecture, heads=2), 3)
