"""Every model's formula written out in Python's own complex numbers, one after the other: no tensors, no tricks.

Complex, because a formula f of reals gives its derivative along a direction d as Im f(x + i·h·d) / h, exactly to double
precision for a tiny h (Squire and Trapp, SIAM Review 1998): the same loops are the oracle of values and of gradients.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from schemas.config import ModelConfig

Row = Sequence[complex]
Weights = Mapping[str, Any]  # name in the model's state_dict → nested lists of complex numbers
EPSILON = {"norm": 1e-5, "dice": 1e-8}


def dot(a: Row, b: Row) -> complex:
    assert len(a) == len(b)
    total = 0j
    for p, q in zip(a, b, strict=True):
        total += p * q
    return total


def sigmoid(s: complex) -> complex:
    return 1 / (1 + cmath.exp(-s))


def activated(name: str, s: complex, neuron: int, own: Weights) -> complex:
    """When scoring. own: the activation's own weights, by the last part of their name."""
    if name == "relu":
        return s if s.real > 0 else 0j
    if name == "tanh":
        return cmath.tanh(s)
    if name == "prelu":
        return s if s.real > 0 else complex(own["weight"][neuron]) * s
    mean, variance = own["norm.running_mean"][neuron], own["norm.running_var"][neuron]
    p = sigmoid((s - mean) / cmath.sqrt(variance + EPSILON["dice"]))
    return p * s + (1 - p) * complex(own["alpha"][neuron]) * s


def through(layers: str, signal: Row, weights: Weights, config: ModelConfig, ends_linear: bool = False) -> list[complex]:
    """The layers called `layers`.0, .1, … in order: linear, batch norm, activation, and again; dropout is at rest.

    ends_linear: nothing comes after the last linear layer.
    """
    places: dict[int, dict[str, Any]] = {}
    for name, value in weights.items():
        if name.startswith(layers + "."):
            number, _, last = name.removeprefix(layers + ".").partition(".")
            places.setdefault(int(number), {})[last] = value
    linear = sorted(place for place, own in places.items() if "weight" in own and isinstance(own["weight"][0], list))
    for place in linear:
        own = places[place]
        bias = own.get("bias", [0j] * len(own["weight"]))
        signal = [dot(line, signal) + b for line, b in zip(own["weight"], bias, strict=True)]
        if ends_linear and place == linear[-1]:
            break
        after = place + 1
        if config.batch_norm:
            signal = [normalised(s, n, places[after]) for n, s in enumerate(signal)]
            after += 1
        own = places.get(after, {})
        signal = [activated(config.activation, s, n, own) for n, s in enumerate(signal)]
    return list(signal)


def normalised(s: complex, neuron: int, own: Weights) -> complex:
    """Batch norm when scoring."""
    deviation = cmath.sqrt(own["running_var"][neuron] + EPSILON["norm"])
    return complex((s - own["running_mean"][neuron]) / deviation * own["weight"][neuron] + own["bias"][neuron])


def mlp(signal: Row, weights: Weights, config: ModelConfig) -> complex:
    heads = ["mlp.layers", *(f"mlp.others.{head}" for head in range(config.heads - 1))]
    return sum(through(head, signal, weights, config, ends_linear=True)[0] for head in heads) / config.heads


def first_order(x: Sequence[Row]) -> complex:
    return sum((row[0] for row in x), 0j)


def rest(x: Sequence[Row], start: int = 1, stop: int | None = None) -> list[Row]:
    return [row[start:stop] for row in x]


def flat(x: Sequence[Row]) -> list[complex]:
    return [number for row in x for number in row]


def all_pairs(v: Sequence[Row]) -> complex:
    return sum((dot(a, b) for a, b in combinations(v, 2)), 0j)


def lr(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return first_order(x)


def fm(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return first_order(x) + all_pairs(rest(x))


def ffm(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    k, logit = config.factors, 0j
    for i, j in combinations(range(len(x)), 2):
        logit += dot(x[i][j * k : (j + 1) * k], x[j][i * k : (i + 1) * k])
    return logit


def ffm_linear(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return first_order(x) + ffm(rest(x), weights, config)


def afm(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    products, shares = [], []
    for a, b in combinations(rest(x), 2):
        product = [p * q for p, q in zip(a, b, strict=True)]
        signal = 0j
        for line, c, h in zip(
            weights["attention.weight"], weights["attention.bias"], weights["h.weight"][0], strict=True
        ):
            s = dot(line, product) + c
            signal += h * s if s.real > 0 else 0j
        products.append(product)
        shares.append(cmath.exp(signal))
    logit = first_order(x)
    for product, share in zip(products, shares, strict=True):
        logit += share / sum(shares) * dot(weights["p"], product)
    return logit


def nfm(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    f = [sum((a[k] * b[k] for a, b in combinations(rest(x), 2)), 0j) for k in range(config.factors)]
    if config.batch_norm:
        own = {name.removeprefix("interaction.0."): value for name, value in weights.items()}
        f = [normalised(s, n, own) for n, s in enumerate(f)]
    return first_order(x) + mlp(f, weights, config)


def fnn(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    """Without the global bias, which this model has as an input."""
    if weights["examples"][0].real < config.fnn_pretrain_rows:
        return fm(x, weights, config)
    start = complex(weights["output_bias"][0] - weights["bias"][0])
    return start + mlp([weights["bias"][0], *flat(x)], weights, config)


def dnn(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return mlp(flat(x), weights, config)


def pnn(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    k, signal = config.factors, []
    for n, line in enumerate(weights["first.weight"]):
        s = dot(line, flat(x)) + weights["first.bias"][n]
        if config.product in ("inner", "both"):
            theta = weights["inner.weight"][n]
            for i in range(len(x)):
                for j in range(len(x)):
                    s += theta[i] * theta[j] * dot(x[i], x[j])
        if config.product in ("outer", "both"):
            for p in range(k):
                for q in range(k):
                    s += weights["outer.weight"][n][p * k + q] * sum(a[p] * b[q] for a in x for b in x)
        signal.append(s)
    own = {name.removeprefix("after.0."): value for name, value in weights.items() if name.startswith("after.0.")}
    signal = [activated(config.activation, s, n, own) for n, s in enumerate(signal)]
    return mlp(signal, weights, config)


def pnn_pairs(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    k, inner, outer = config.factors, [], []
    for pair, (a, b) in enumerate(combinations(x, 2)):
        inner.append(dot(a, b))
        if config.product != "inner":
            matrix = weights["kernel"][pair]
            outer.append(sum((b[p] * matrix[p][q] * a[q] for p in range(k) for q in range(k)), 0j))
    chosen = {"inner": inner, "outer": outer, "both": inner + outer}[config.product]
    return mlp([*flat(x), *chosen], weights, config)


def lr_dnn(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return first_order(x) + mlp(flat(rest(x)), weights, config)


def fm_dnn(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    k = config.factors
    return first_order(x) + all_pairs(rest(x, 1, 1 + k)) + mlp(flat(rest(x, 1 + k)), weights, config)


def deepfm(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return fm(x, weights, config) + mlp(flat(rest(x)), weights, config)


def crossed(x0: Row, weights: Weights, config: ModelConfig, full: bool) -> Row:
    x = x0
    for layer in range(config.cross_layers):
        matrix, c = weights[f"cross.{layer}.weight"], weights[f"cross.{layer}.bias"]
        if full:
            x = [x0[n] * (dot(matrix[n], x) + c[n]) + x[n] for n in range(len(x0))]
        else:
            amount = dot(x, matrix[0])
            x = [x0[n] * amount + c[n] + x[n] for n in range(len(x0))]
    return x


def dcn(x: Sequence[Row], weights: Weights, config: ModelConfig, full: bool = False) -> complex:
    x0 = flat(x)
    deep = through("deep", x0, weights, config) if config.hidden else []
    return dot(weights["output.weight"][0], [*crossed(x0, weights, config, full), *deep])


def dcn_linear(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return first_order(x) + dcn(rest(x), weights, config)


def dcn_v2(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return dcn(x, weights, config, full=True)


def dcn_v2_stacked(x: Sequence[Row], weights: Weights, config: ModelConfig) -> complex:
    return dot(weights["output.weight"][0], through("deep", crossed(flat(x), weights, config, True), weights, config))


def beyond(count: Row, prior: float, strength: float) -> float:
    """How much the clicks of one value exceed what was expected, in log-odds. Counts are not differentiated."""
    hits = max(count[1].real, 0.0)
    misses = max(count[0].real - hits, 0.0)
    rate = (hits + strength * prior) / (hits + misses + strength)
    return math.log(rate / (1 - rate)) - math.log(prior / (1 - prior))


def numbers(counts: Sequence[Row], logs: Row, weights: Weights, sides: Sequence[tuple[int, int]] = ()) -> list[complex]:
    """Of each field, then of each cross beyond its two sides; then the logs."""
    seen, clicked = (total.real for total in weights["statistics.totals"])
    prior = (clicked + 1) / (seen + 2)
    s = [beyond(count, prior, 3) for count in counts[: len(counts) - len(sides)]]
    pair = []
    for (left, right), count in zip(sides, counts[len(s) :], strict=True):
        expected = 1 / (1 + (1 - prior) / prior * math.exp(-s[left] - s[right]))
        pair.append(beyond(count, min(max(expected, 1e-4), 1 - 1e-4), 10))
    return [*map(complex, s + pair), *(0.3 * log for log in logs)]


def deepfm_numbers(x: Sequence[Row], n: Row, weights: Weights, config: ModelConfig) -> complex:
    return fm(x, weights, config) + dot(weights["statistics.weight"], n) + mlp([*flat(rest(x)), *n], weights, config)


def ffm_stats(x: Sequence[Row], n: Row, weights: Weights, config: ModelConfig) -> complex:
    k, products = config.factors, []
    for i, j in combinations(range(len(x)), 2):
        products.append(dot(x[i][1 + j * k : 1 + (j + 1) * k], x[j][1 + i * k : 1 + (i + 1) * k]))
    deep = mlp([*(10 * product for product in products), *n], weights, config)
    return first_order(x) + sum(products, 0j) + dot(weights["statistics.weight"], n) + deep


NUMBERED: dict[str, Callable[[Sequence[Row], Row, Weights, ModelConfig], complex]] = {
    "deepfm": deepfm_numbers, "ffm_stats": ffm_stats,
}
FORMULAS: dict[str, Callable[[Sequence[Row], Weights, ModelConfig], complex]] = {
    "lr": lr, "fm": fm, "ffm": ffm, "ffm_linear": ffm_linear, "afm": afm, "nfm": nfm, "fnn": fnn, "dnn": dnn,
    "pnn": pnn, "pnn_pairs": pnn_pairs, "lr_dnn": lr_dnn, "wide_deep": lr_dnn, "fm_dnn": fm_dnn, "deepfm": deepfm, "dcn": dcn,
    "dcn_linear": dcn_linear, "dcn_v2": dcn_v2, "dcn_v2_stacked": dcn_v2_stacked,
}


def logit(
    x: Sequence[Row], values: Row, weights: Weights, config: ModelConfig, beside: Sequence[int] = (),
    sides: Sequence[tuple[int, int]] = (),
) -> complex:
    """One example's. x: rows of W, of fields and crosses, pooled; values: what each is multiplied by, but for the columns
    `beside`. sides: the fields of each cross that the model reads the counts of."""
    bias, fields = complex(weights["bias"][0]), len(x) - len(sides)
    counted = 2 if "statistics.totals" in weights else 0
    scaled = [
        [(1 if place in beside else value) * number for number in row[: len(row) - counted]]
        for place, (row, value) in enumerate(zip(x, values, strict=True))
    ][:fields]
    if not counted:
        return bias + FORMULAS[config.architecture](scaled, weights, config)
    n = numbers([row[-2:] for row in x], [values[place] for place in beside], weights, sides)
    return bias + NUMBERED[config.architecture](scaled, n, weights, config)


def pooled(
    rows: Sequence[Row], lengths: Sequence[int], means: Sequence[bool], counted: int = 0
) -> list[list[complex]]:
    """One row per bag: the mean of its rows, or their sum; of the last `counted` columns always the mean."""
    at, found = 0, []
    for length, mean in zip(lengths, means, strict=True):
        columns = list(zip(*rows[at : at + length], strict=True))
        learnt = len(columns) - counted
        found.append([sum(c) / (length if mean or n >= learnt else 1) for n, c in enumerate(columns)])
        at += length
    return found


def parameters(architecture: str, config: ModelConfig, fields: int) -> tuple[int, int]:
    """(floats of a row, dense parameters), as the papers count them."""
    k, f, d = config.factors, fields, list(config.hidden)

    def network(inputs: int, widths: Sequence[int], output: bool = True) -> int:
        total = 0
        for width in widths:
            total, inputs = total + (inputs + 1) * width, width
        return total + (inputs if output else 0)

    pair = math.comb(f, 2)
    products = {"inner": pair, "outer": pair, "both": 2 * pair}[config.product]
    paper = {"inner": f, "outer": k * k, "both": f + k * k}[config.product]
    cross = {"dcn": 2 * f * k, "dcn_linear": 2 * f * k}.get(architecture, f * k * (f * k + 1)) * config.cross_layers
    deep = network(f * k, d, output=False)
    counted = {
        "lr": (1, 0), "fm": (1 + k, 0), "ffm": (f * k, 0), "ffm_linear": (1 + f * k, 0),
        "afm": (1 + k, config.attention_factors * (k + 2) + k),
        "nfm": (1 + k, network(k, d)),
        "fnn": (1 + k, 1 + network(1 + f * (1 + k), d)),
        "dnn": (k, network(f * k, d)),
        "pnn": (k, d[0] * (f * k + 1 + paper) + network(d[0], d[1:])),
        "pnn_pairs": (k, network(f * k + products, d) + (0 if config.product == "inner" else pair * k * k)),
        "lr_dnn": (1 + k, network(f * k, d)), "wide_deep": (1 + k, network(f * k, d)),
        "fm_dnn": (1 + 2 * k, network(f * k, d)), "deepfm": (1 + k, network(f * k, d)),
        "dcn": (k, cross + deep + f * k + d[-1]), "dcn_linear": (1 + k, cross + deep + f * k + d[-1]),
        "ffm_stats": (1 + f * k + 2, network(pair + f, d) + f),
        "dcn_v2": (k, cross + deep + f * k + d[-1]), "dcn_v2_stacked": (k, cross + deep + d[-1]),
    }
    row, dense = counted[architecture]
    return row, 1 + dense
