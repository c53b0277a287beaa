"""Every model of ours on Criteo's rows beside the libraries that have it, and our best beside Vowpal Wabbit.

One pass, each row scored before it is learnt, the same rows in the same order, the same bins as ids. Where a library has the
same model, both begin at the same weights and learn by the same optimisers at the same rates in the same batches: what is left
is what the two compute. Where what it calls so is another model, the table says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.bench.measuring.paired import difference
from ops.bench.peers import environment
from ops.formats import EventRecord
from ops.offline.evaluate import NothingLearnt
from schemas import fields
from schemas.bags import Bags, Floats, concat
from schemas.config import Settings, Source, build, the_one
from schemas.events import Action, Impression, parse
from schemas.fields import FieldSchema
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner
from stream_trainer.watching.windows import figures

TOLERANCE = 0.002  # of AUC: what a library's same model may lie away, beyond two standard errors

# What every matched run has. 2^22 rows: the libraries have no collisions, so ours may have few.
MATCHED: Mapping[str, Any] = MappingProxyType({
    "model.schema": "criteo", "model.bits": 22, "model.factors": 10, "model.hidden": (64, 32), "model.heads": 1,
    "model.activation": "relu", "model.dropout": 0.0, "model.batch_norm": False, "model.statistics": False,
    "model.init_scale": 0.01, "model.attention_factors": 8, "model.cross_layers": 3, "learn.batch_rows": 256,
    "learn.row_optimiser": "adagrad", "learn.row_rate": 0.015, "learn.first_order_optimiser": "same",
    "learn.first_order_rate": 0.0, "learn.dense_optimiser": "adam", "learn.dense_rate": 0.001, "learn.clip": 0.0,
    "learn.decay": 0.0, "learn.guard": False, "learn.device": "cpu", "learn.precision": "fp32",
})

# Our models under matched settings: name → what differs from MATCHED.
OURS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "lr": {"model.architecture": "lr"},
    "fm": {"model.architecture": "fm"},
    "ffm": {"model.architecture": "ffm", "model.factors": 4},
    "ffm_linear": {"model.architecture": "ffm_linear", "model.factors": 4},
    "afm": {"model.architecture": "afm"},
    "nfm": {"model.architecture": "nfm"},
    "fnn": {"model.architecture": "fnn", "model.fnn_pretrain_rows": 10_000},
    "dnn": {"model.architecture": "dnn"},
    "pnn_inner": {"model.architecture": "pnn", "model.product": "inner"},
    "pnn_outer": {"model.architecture": "pnn", "model.product": "outer"},
    "pnn_both": {"model.architecture": "pnn", "model.product": "both"},
    "pnn_pairs_inner": {"model.architecture": "pnn_pairs", "model.product": "inner"},
    "pnn_pairs_outer": {"model.architecture": "pnn_pairs", "model.product": "outer"},
    "pnn_pairs_both": {"model.architecture": "pnn_pairs", "model.product": "both"},
    "lr_dnn": {"model.architecture": "lr_dnn"},
    "wide_deep": {"model.architecture": "wide_deep"},
    "fm_dnn": {"model.architecture": "fm_dnn"},
    "deepfm": {"model.architecture": "deepfm"},
    "dcn": {"model.architecture": "dcn"},
    "dcn_linear": {"model.architecture": "dcn_linear"},
    "dcn_v2": {"model.architecture": "dcn_v2"},
    "dcn_v2_stacked": {"model.architecture": "dcn_v2_stacked"},
})

# Ours beside Vowpal Wabbit, with the settings that we would use: name → what differs from the defaults.
BEST: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "default": {"model.schema": "criteo"},
    "ffm_stats": {"model.schema": "criteo", "model.architecture": "ffm_stats"},
})

# What the best are timed beside: the paper's DeepFM, else the defaults.
PLAIN: Mapping[str, Any] = MappingProxyType({"model.schema": "criteo", "model.statistics": False})
TURN_ROWS = 1 << 13  # that a model learns before the next one has its turn: what else the machine does hits all alike

# Vowpal Wabbit's: its best on these rows of all that was tried, and its linear model.
VW: Mapping[str, str] = MappingProxyType({
    "vw_pairs": "--loss_function logistic --link logistic -b 22 -q ff -l .1",
    "vw_linear": "--loss_function logistic --link logistic -b 22 -l .3",
})


@dataclass(frozen=True, slots=True)
class Theirs:
    """A model of a library. peer: the module under ops/bench/peers. model: its name there. shown: the library's own name for
    it. start: which of ours lends it settings and initial weights."""

    peer: str
    model: str
    shown: str
    start: str


LIBRARIES = {"deepctr": "DeepCTR-Torch", "fuxi": "FuxiCTR", "vw": "Vowpal Wabbit"}
THEIRS: Mapping[str, Theirs] = MappingProxyType({
    f"{theirs.peer}_{theirs.model}": theirs for theirs in (
        Theirs("deepctr", "lr", "DeepFM(use_fm=False, no DNN)", "lr"),
        Theirs("deepctr", "fm", "DeepFM(no DNN)", "fm"),
        Theirs("deepctr", "afm", "AFM", "afm"),
        Theirs("deepctr", "nfm", "NFM", "nfm"),
        Theirs("deepctr", "dnn", "PNN(use_inner=False)", "dnn"),
        Theirs("deepctr", "pnn_inner", "PNN", "pnn_pairs_inner"),
        Theirs("deepctr", "pnn_outer", "PNN(use_outter, mat)", "pnn_pairs_outer"),
        Theirs("deepctr", "pnn_both", "PNN(both, mat)", "pnn_pairs_both"),
        Theirs("deepctr", "wide_deep", "WDL", "lr_dnn"),
        Theirs("deepctr", "deepfm", "DeepFM", "deepfm"),
        Theirs("deepctr", "dcn", "DCN", "dcn_linear"),
        Theirs("deepctr", "dcn_v2", "DCN(matrix)", "dcn_v2"),
        Theirs("fuxi", "lr", "LR", "lr"),
        Theirs("fuxi", "fm", "FM", "fm"),
        Theirs("fuxi", "ffm", "FFM", "ffm_linear"),
        Theirs("fuxi", "afm", "AFM", "afm"),
        Theirs("fuxi", "nfm", "NFM", "nfm"),
        Theirs("fuxi", "dnn", "DNN", "dnn"),
        Theirs("fuxi", "pnn_inner", "PNN", "pnn_pairs_inner"),
        Theirs("fuxi", "wide_deep", "WideDeep", "lr_dnn"),
        Theirs("fuxi", "deepfm", "DeepFM", "deepfm"),
        Theirs("fuxi", "dcn", "DCN", "dcn"),
        Theirs("fuxi", "dcn_v2", "DCNv2(parallel)", "dcn_v2"),
        Theirs("fuxi", "dcn_v2_stacked", "DCNv2(stacked)", "dcn_v2_stacked"),
    )
})

# What a library has under that name is another model: (ours, theirs) → why. All other pairs are those of THEIRS.
ANOTHER: Mapping[tuple[str, str], str] = MappingProxyType({
    ("ffm", "fuxi_ffm"): "adds first-order weights",
    ("fnn", "fuxi_dnn"): "no FM first, no first-order weights as inputs",
    ("pnn_inner", "deepctr_pnn_inner"): "a product per pair, not the paper's factorised sum",
    ("pnn_inner", "fuxi_pnn_inner"): "a product per pair, not the paper's factorised sum",
    ("pnn_outer", "deepctr_pnn_outer"): "a kernel per pair, not the paper's superposed product",
    ("pnn_both", "deepctr_pnn_both"): "as the two above",
    ("wide_deep", "deepctr_wide_deep"): "no crosses in the wide part",
    ("wide_deep", "fuxi_wide_deep"): "no crosses in the wide part",
    ("dcn", "deepctr_dcn"): "adds first-order weights",
    ("dcn_v2", "deepctr_dcn_v2"): "adds first-order weights",
})
NAMES: tuple[str, ...] = (*OURS, *BEST)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A file as all get it. bags: what our learner takes. labels: (n,). codes: (n, F), each id's place among `values`, the ids
    of its field in ascending order. Fields have one id each."""

    bags: Bags
    labels: Floats
    codes: NDArray[np.int32]
    values: tuple[NDArray[np.uint64], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """said: (n,) probabilities, each before its row was learnt. seconds: process time of our learner; None of a peer's."""

    said: Floats
    seconds: float | None = None


def read(records: Iterable[EventRecord], schema: FieldSchema, advance: Callable[[int], None] = lambda _: None) -> Rows:
    """Impressions of one item, and whether one was clicked, in the order of the file: what a join makes of them whose windows
    do not overlap. Raises NothingLearnt if there is none."""
    encoder = fields.Encoder(schema, training=True)
    bags: list[Bags] = []
    clicked: set[int] = set()
    for record in records:
        event = parse(record.value)
        if isinstance(event, Impression):
            bags.append(encoder.encode(event.slate)[0])
            advance(1)
        elif isinstance(event, Action):
            clicked.add(len(bags) - 1)
    if not bags:
        raise NothingLearnt("the file holds no row that can be used")
    together = concat(bags)
    labels = np.zeros(len(together), np.float32)
    labels[sorted(clicked)] = 1
    ids = together.ids.reshape(len(together), -1)                                           # (n, F)
    found = [np.unique(column, return_inverse=True) for column in ids.T]
    codes = np.stack([places for _, places in found], axis=1).astype(np.int32)              # (n, F)
    return Rows(together, labels, codes, tuple(values for values, _ in found))


def settings_of(name: str, settings: Settings, seed: int) -> Settings:
    """What one of ours, or `plain`, learns by: the tables above; of `settings` the device and the threads."""
    open_ones = {"learn.device": settings.learn.device, "learn.threads": settings.learn.threads, "model.seed": seed}
    table = {"plain": PLAIN, **BEST}[name] if name in {"plain", *BEST} else {**MATCHED, **OURS[name]}
    return build(Source("bench", {**table, **open_ones}))[0]


def learner_of(name: str, settings: Settings, seed: int) -> Learner:
    """One of ours before it learns. Under matched settings only Wide&Deep sees the schema's crosses, as libraries have none."""
    chosen = settings_of(name, settings, seed)
    schema = fields.load(chosen.model.schema)
    return Learner(chosen.model, chosen.learn, schema if name in {"plain", *BEST, "wide_deep"} else replace(schema, crosses=()))


def learn(learner: Learner, rows: Rows) -> Run:
    """All rows, by the guard and the learner of the trainer, in batches by count."""
    began = time.process_time()
    guard, size = Guard(learner), learner.learn_config.batch_rows
    said = [
        guard.learn(rows.bags.slice(at, min(at + size, len(rows.labels))), rows.labels[at : at + size])[0]
        for at in range(0, len(rows.labels), size)
    ]
    return Run(np.concatenate(said), time.process_time() - began)


def passes(learners: Mapping[str, Learner], rows: Rows) -> dict[str, float]:
    """Process time in seconds that each learner alone, without a guard, takes for all rows, in turns."""
    took = dict.fromkeys(learners, 0.0)
    for first in range(0, len(rows.labels), TURN_ROWS):
        last = min(first + TURN_ROWS, len(rows.labels))
        for name, learner in learners.items():
            size, began = learner.learn_config.batch_rows, time.process_time()
            for at in range(first, last, size):
                learner.learn(rows.bags.slice(at, min(at + size, last)), rows.labels[at : min(at + size, last)])
            took[name] += time.process_time() - began
    return took


def start(learner: Learner, rows: Rows) -> dict[str, NDArray[Any]]:
    """What a model begins with: `rows`, those of every value, field after field, and the dense weights by name."""
    numbers = learner.table.numbers(np.concatenate(rows.values))
    return {"rows": learner.table.gather(numbers).cpu().numpy(), **learner.dense()}


def vw_lines(rows: Rows) -> Iterable[str]:
    """The rows as Vowpal Wabbit reads them: 1 or −1, then a feature per field in the one namespace f."""
    for label, codes in zip(rows.labels.tolist(), rows.codes.tolist(), strict=True):
        yield f"{1 if label else -1} |f " + " ".join(f"{field}_{code}" for field, code in enumerate(codes)) + "\n"


def opponents(name: str) -> dict[str, str]:
    """What one of ours stands beside: name of theirs → why it is another model, empty where it is the same."""
    if name in BEST:
        return dict.fromkeys(VW, "another model")
    same = {key: "" for key, theirs in THEIRS.items() if theirs.start == name and (name, key) not in ANOTHER}
    return same | {key: why for (ours, key), why in ANOTHER.items() if ours == name}


class Bench:
    """Runs what is asked for, each once, and compares."""

    def __init__(self, settings: Settings, rows: Rows, python: Path, ran: Callable[[], None] = lambda: None) -> None:
        """settings: what the tables above leave open. python: of the peers' environment. ran: is called after each run."""
        self._settings = settings
        self._rows = rows
        self._python = python
        self._ran = ran
        self._runs: dict[tuple[str, int], Run] = {}

    def ours(self, name: str, seed: int) -> Run:
        """One of ours."""
        if (name, seed) not in self._runs:
            self._runs[name, seed] = learn(learner_of(name, self._settings, seed), self._rows)
            self._ran()
        return self._runs[name, seed]

    def theirs(self, name: str, seed: int) -> Run:
        """One of theirs, from the weights that this seed gives. Vowpal Wabbit has no seeds. Raises PeerError."""
        seed = 0 if name in VW else seed
        if (name, seed) not in self._runs:
            with TemporaryDirectory(prefix="freshet-bench-") as folder:
                self._runs[name, seed] = Run(self._peer(name, seed, Path(folder)))
            self._ran()
        return self._runs[name, seed]

    def _peer(self, name: str, seed: int, folder: Path) -> Floats:
        n = len(self._rows.labels)
        if name in VW:
            with (folder / "rows.vw").open("w") as file:
                file.writelines(vw_lines(self._rows))
            return environment.run(self._python, "vw", folder, {"arguments": VW[name]}, n)
        theirs = THEIRS[name]
        learner = learner_of(theirs.start, self._settings, seed)
        model, rule = learner.model_config, learner.learn_config
        sizes = np.array([len(values) for values in self._rows.values])
        np.savez(folder / "rows.npz", codes=self._rows.codes, sizes=sizes, labels=self._rows.labels)
        np.savez(folder / "start.npz", allow_pickle=False, **start(learner, self._rows))
        task = {
            "model": theirs.model, "first_order": learner.model.first_order, "factors": model.factors, "hidden": model.hidden,
            "attention_factors": model.attention_factors, "cross_layers": model.cross_layers, "batch_rows": rule.batch_rows,
            "row_rate": rule.row_rate, "dense_rate": rule.dense_rate, "threads": rule.threads,
        }
        return environment.run(self._python, theirs.peer, folder, task, n)

    def compare(self, name: str, seeds: Sequence[int], from_row: int) -> dict[str, Any]:
        """One of ours and all that it stands beside, means over seeds, of the rows from `from_row` on."""
        labels = self._rows.labels[from_row:]
        ours = [self.ours(name, seed) for seed in seeds]
        own = _figures([run.said[from_row:] for run in ours], labels)
        beside = []
        for key, why in opponents(name).items():
            theirs = [run.said[from_row:] for run in {id(run): run for run in (self.theirs(key, s) for s in seeds)}.values()]
            apart = difference([run.said[from_row:] for run in ours], theirs, labels)
            library = "vw" if key in VW else THEIRS[key].peer
            found: dict[str, Any] = {
                "name": key, "library": LIBRARIES[library], "model": VW.get(key) or THEIRS[key].shown, "same": not why,
                "why": why, **_figures(theirs, labels), "difference": asdict(apart),
            }
            if not why:
                found["within"] = abs(apart.auc) <= TOLERANCE + 2 * apart.auc_error
            beside.append(found)
        return {"model": name, "seeds": len(seeds), **own, "seconds": min(run.seconds or 0 for run in ours), "beside": beside}


    def times(self, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """What the best of `names` take for one pass beside plain DeepFM: medians over seeds of the ratios, least and most."""
        best = ["plain", *(name for name in names if name in BEST)]
        took = []
        if len(best) > 1:   # whatever a process does once, before it counts
            few = min(TURN_ROWS, len(self._rows.labels))
            first = replace(self._rows, bags=self._rows.bags.slice(0, few), labels=self._rows.labels[:few])
            passes({name: learner_of(name, self._settings, seeds[0]) for name in best}, first)
        for seed in seeds if len(best) > 1 else []:
            took.append(passes({name: learner_of(name, self._settings, seed) for name in best}, self._rows))
            self._ran()
        found: dict[str, Any] = {}
        for name in best if took else []:
            ratios = [one[name] / one["plain"] for one in took]
            found[name] = {
                "seconds": float(np.median([one[name] for one in took])), "times_plain": float(np.median(ratios)),
                "least": min(ratios), "most": max(ratios),
            }
        return found


def chosen(only: str) -> list[str]:
    """Names of ours, in the order of the tables. Raises ConfigError naming the nearest."""
    named = [name.strip() for name in only.split(",") if name.strip()]
    for name in named:
        the_one("--only", name, dict.fromkeys(NAMES))
    return [name for name in NAMES if name in named or not named]


def runs(names: Sequence[str], seeds: int) -> int:
    """How many there will be."""
    theirs = {key for name in names for key in opponents(name)}
    timed = seeds if BEST.keys() & set(names) else 0
    return seeds * (len(names) + len(theirs - VW.keys())) + len(theirs & VW.keys()) + timed


def beyond(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Pairs that should be the same model and lie too far apart."""
    return [
        f"{one['model']} and {beside['name']}" for one in found for beside in one["beside"] if not beside.get("within", True)
    ]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line per model of ours and one per model beside it; differences are ours − theirs ± one standard error."""
    head = f"{'model':<46}{'AUC':>8}{'log loss':>10}{'AUC, ours − theirs':>22}{'log loss':>20}  "
    lines = [head.rstrip()]
    for one in found:
        lines.append(f"{one['model']:<46}{one['auc']:>8.4f}{one['log_loss']:>10.4f}{'':>42}  {one['seconds']:.1f} s")
        for beside in one["beside"]:
            apart = beside["difference"]
            shown = f"  {beside['library']} {beside['model'].removeprefix('--loss_function logistic --link logistic ')}"
            verdict = beside["why"] if not beside["same"] else "same" if beside["within"] else f"beyond {TOLERANCE}"
            lines.append(
                f"{shown:<46}{beside['auc']:>8.4f}{beside['log_loss']:>10.4f}"
                f"{apart['auc']:>+13.5f} ± {apart['auc_error']:.5f}{apart['log_loss']:>+11.5f} ± {apart['log_loss_error']:.5f}"
                f"  {verdict}"
            )
    return "\n".join(lines)


def times_told(times: Mapping[str, Mapping[str, float]]) -> str:
    """A line per model of Bench.times."""
    return "\n".join(
        f"{name:<12}{took['seconds']:>6.2f} s{took['times_plain']:>7.2f} x plain ({took['least']:.2f} to {took['most']:.2f})"
        for name, took in times.items()
    )


def _figures(said: Sequence[Floats], labels: Floats) -> dict[str, float | None]:
    """Means over seeds."""
    windows = [figures(0, one, labels) for one in said]
    aucs = [window.auc for window in windows if window.auc is not None]
    return {
        "auc": float(np.mean(aucs)) if aucs else None,
        "log_loss": float(np.mean([window.log_loss for window in windows])),
    }
