"""The learner: bags of ids and labels in, probabilities out, computed before it learns them. torch and numpy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from schemas.bags import Bags, Floats
from schemas.config import LearnConfig, ModelConfig
from schemas.crosses import crossed
from schemas.errors import ConfigError, FreshetError, ShapeError, SnapshotError
from schemas.fields import FieldSchema
from schemas.models import build
from schemas.models.pooling import pool
from schemas.snapshot import weights_digest
from stream_trainer.learning.losses import Seen, counts, loss_weights, shift
from stream_trainer.learning.once import once
from stream_trainer.learning.optimisers import DenseOptimiser, row_optimiser
from stream_trainer.learning.precision import narrow
from stream_trainer.learning.table import Table


class Diverged(FreshetError):
    """The loss, or what was learnt, is not a finite number any more. Nothing of it may be published."""


class Learner:
    """One table, one dense part, and the configured optimisers of both.

    Same batches, same seed, same number of threads: same weights, bit for bit (on a CPU; a GPU adds in any order).
    """

    def __init__(self, model: ModelConfig, learn: LearnConfig, schema: FieldSchema, rotation: int = 64) -> None:
        """The model as its seed makes it. Sets torch's threads, for the whole process."""
        torch.set_num_threads(learn.threads)
        self.model_config = model
        self.learn_config = self._asked = learn
        self.device = _device(learn.device)
        self.model = build(model, len(schema.fields), len(schema.crosses), schema.logs, schema.sides).to(self.device)
        self.bf16_layers = narrow(self.model, learn, self.device)
        self.schema = schema if self.model.crosses else replace(schema, crosses=())
        self._columns = self.schema.columns
        self.table = Table(
            model.bits, self.model.row_width, row_optimiser(learn, self.model.first_order), self.model.new_rows,
            rotation, self.device, self.model.counted,
        )
        self.batches_learnt = 0
        self.examples_learnt = 0
        self._two_modes = self.model.two_modes
        self._dense = DenseOptimiser(learn, self.model)
        self._random = torch.Generator(self.device)
        self.model.draw_from(self._random)

    def learn(
        self, bags: Bags, labels: Floats, weights: Floats | None = None, seen: Seen | None = None,
        keep: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Floats:
        """One step. Returns what the model said of each row before it: (B,) probabilities.

        labels: (B,) 0 or 1. weights: (B,) importance of each example, None = 1. The loss is Σ w·(log loss), a sum and no
        mean: a weight of 2 is the example twice, and what a row learns from an example does not depend on how many others
        came with it. seen: how labels came about that are not all final, or not of all examples; what is said is the chance
        of the final label among all. keep: is told which rows are about to change, (N,) each once, and what they hold, state
        and all, (N, S). Raises ShapeError, and Diverged before anything is learnt.
        """
        if len(bags) == 0 or any(column is not None and len(column) != len(bags) for column in (labels, weights, seen)):
            given = "none" if weights is None else str(len(weights))
            raise ShapeError(f"a batch of {len(bags)} rows with {len(labels)} labels and {given} weights")
        target = self._tensor(labels)                                                       # (B,)
        importance = None if weights is None else self._tensor(weights)
        shown, clicked = counts(labels, weights, seen)                                      # (B,), (B,)
        bags = crossed(bags, self.schema)
        said = self._begin(bags, shown, clicked) if self.batches_learnt == 0 else None

        # 1. Each row read once; the leaves of this batch's graph are its weights, wherever an id names it.
        ids = once(self.table.numbers(bags.ids))
        leaves = ids.spread(self.table.gather(ids.rows)).requires_grad_()                   # (n, W)

        # 2. One forward pass, both scored and learnt; with dropout or batch norm the score needs a pass of its own.
        before = []
        if self._two_modes:
            before = [buffer.clone() for buffer in self.model.buffers()]
            said = self.score_rows(leaves.detach(), bags) if said is None else said
            self._random.manual_seed(_seed(self.model_config.seed, self.batches_learnt))
        self._mode(learning=True)
        logits: Tensor = self.model(*pool(leaves, bags, self._columns, self.model.counted))  # (B,) or (H, B)
        loss, pull = _log_loss(logits.detach(), target, importance, seen)                   # a number, as logits
        if not math.isfinite(loss):
            if before:
                for buffer, was in zip(self.model.buffers(), before, strict=True):
                    buffer.copy_(was)
            raise Diverged(
                f"the loss of batch {self.batches_learnt} is {loss} after {self.examples_learnt} examples. "
                f"Nothing was learnt from it. Lower learn.row_rate ({self.learn_config.row_rate}) or learn.dense_rate "
                f"({self.learn_config.dense_rate}), or go back to an earlier version."
            )

        # 3. Back, and one step of each optimiser, by the sum of the gradients of a row that came twice.
        self._dense.zero_grad()
        logits.backward(pull)  # type: ignore[no-untyped-call]
        assert leaves.grad is not None
        self._count(leaves.grad, bags, shown, clicked)
        summed = ids.summed(leaves.grad)                                                    # (N, W)
        if keep is not None:
            keep(ids.rows, self.table.held(ids.rows))
        self.table.apply(ids.rows, summed, summed[:, self.table.learnt :])
        self._dense.step()
        self.model.learnt(len(bags))
        self.batches_learnt += 1
        self.examples_learnt += len(bags)
        return _array(logits.detach().reshape(-1, len(bags)).mean(dim=0).sigmoid()) if said is None else said

    @torch.no_grad()
    def _count(self, gradients: Tensor, bags: Bags, shown: Floats, clicked: Floats) -> None:
        """What an example was seen and clicked, by its importance, into its rows' gradients, which hold nothing in the columns
        of counts: so they are summed by row with them. gradients: (n, W)."""
        if self.model.statistics is None:
            return
        given = np.stack([shown, clicked], dtype=np.float32)                                # (2, B)
        self.model.statistics.count(*given.sum(axis=1).tolist())
        both = torch.from_numpy(given).to(self.device)                                      # (2, B)
        if bags.lengths is None:
            by_example = gradients.view(len(bags), bags.fields, -1)                         # (B, F + C, W)
            by_example[:, :, self.table.learnt].copy_(both[0, :, None])
            by_example[:, :, self.table.learnt + 1].copy_(both[1, :, None])
        else:
            per_row = bags.lengths.reshape(len(bags), -1).sum(axis=1, dtype=np.int64)       # (B,)
            example = torch.from_numpy(np.repeat(np.arange(len(bags)), per_row)).to(self.device)    # (n,)
            gradients[:, self.table.learnt :] = both.T.index_select(0, example)

    def score(self, bags: Bags) -> Floats:
        """(B,) probabilities, learning nothing."""
        return self._score(crossed(bags, self.schema))

    def _score(self, bags: Bags) -> Floats:
        """Of bags that have their crosses."""
        return self.score_rows(self.table.gather(self.table.numbers(bags.ids)), bags)

    @torch.no_grad()
    def score_rows(self, rows: Tensor, bags: Bags, dense: Mapping[str, NDArray[Any]] | None = None) -> Floats:
        """The same of rows that need not be the table's. rows: (n, W). bags: with their crosses. dense: weights in the place of
        the model's."""
        self._mode(learning=False)
        given = pool(rows.contiguous(), bags, self._columns, self.model.counted)
        if dense is None:
            logits: Tensor = self.model(*given)                                             # (B,)
        else:
            others = {name: torch.from_numpy(array).to(self.device) for name, array in dense.items()}
            logits = functional_call(self.model, others, given)
        return _array(logits.sigmoid())

    def dense(self) -> dict[str, NDArray[Any]]:
        """The dense weights by name: what a version holds."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}

    def dense_state(self) -> dict[str, NDArray[Any]]:
        """The dense optimiser's state by name: what a checkpoint holds besides."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._dense.state()}

    def scale_rates(self, factor: float) -> None:
        """From the next batch on all rates are those asked for, times that; what the optimisers know stays."""
        asked = self._asked
        self.learn_config = replace(
            asked, row_rate=asked.row_rate * factor, first_order_rate=asked.first_order_rate * factor,
            dense_rate=asked.dense_rate * factor,
        )
        self.table.optimiser = row_optimiser(self.learn_config, self.model.first_order)
        self._dense.follow(self.learn_config)

    def load(
        self, dense: Mapping[str, NDArray[Any]], state: Mapping[str, NDArray[Any]], batches: int, examples: int
    ) -> None:
        """Go on from a checkpoint; its rows go into the table directly. Raises SnapshotError where it does not fit."""
        try:
            self.model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in dense.items()})
        except RuntimeError as wrong:
            raise SnapshotError(f"the dense weights of the checkpoint do not fit the model: {wrong}") from wrong
        self._dense.load({name: torch.from_numpy(np.array(array)).to(self.device) for name, array in state.items()})
        self.batches_learnt = batches
        self.examples_learnt = examples

    def digest(self) -> str:
        """Same weights → same text (schemas.snapshot.weights_digest)."""
        rows = self.table.touched()
        return weights_digest(rows, self.table.weights(rows), self.dense())

    def _tensor(self, floats: Floats) -> Tensor:
        """A copy: what came from a message's bytes cannot be written, and torch wants that it can."""
        return torch.from_numpy(np.array(floats, np.float32)).to(self.device)

    def _mode(self, learning: bool) -> None:
        """Telling every module costs as much as a small layer."""
        if self.model.training is not learning:
            self.model.train(learning)

    def _begin(self, bags: Bags, shown: Floats, clicked: Floats) -> Floats:
        """Before the first batch: set the global bias to the log-odds of its clicks, so that rare clicks need not be
        learnt one small step after the other. Returns the batch's scores before that."""
        said = self._score(bags)
        clicks = float(clicked.sum())
        self.model.begin(math.log((clicks + 1) / (max(float(shown.sum()) - clicks, 0.0) + 1)))
        return said


@torch.no_grad()
def _log_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None, seen: Seen | None
) -> tuple[float, Tensor]:
    """Σ w·(log loss), and its gradient w·(sigmoid(z) − y) in the logits. logits: (B,), or (H, B) of several heads, each with a
    loss of its own. labels, weights: (B,). The gradient is (B,) or (H, B)."""
    compared = logits
    if seen is not None:
        compared = logits - torch.from_numpy(shift(seen)).to(logits.device)
        corrections = loss_weights(logits, labels, seen)
        weights = corrections if weights is None else weights * corrections
    loss = nn.functional.binary_cross_entropy_with_logits(compared, labels.expand_as(compared), weights, reduction="sum")
    pull = compared.sigmoid().sub_(labels)
    return loss.item(), pull if weights is None else pull.mul_(weights)


def _device(name: str) -> torch.device:
    """auto: the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as wrong:
        raise ConfigError(f"learn.device={name}: one of auto, cpu, cuda, cuda:1 …") from wrong
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"learn.device={name}: torch sees {torch.cuda.device_count()} GPUs here; set auto or cpu")
    return device


def _seed(seed: int, batch: int) -> int:
    """Randomness is a function of the seed and the batch's number, so that a batch learnt again draws the same."""
    return (seed * 0x9E3779B97F4A7C15 + batch) % 2**63


def _array(tensor: Tensor) -> Floats:
    found: Floats = tensor.cpu().numpy()
    return found
