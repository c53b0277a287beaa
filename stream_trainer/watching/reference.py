"""A version of the model that stands still, beside the one that learns: is it worth what it costs?

It scores a sample of the examples that both are judged by; as it never changes, when it does so does not matter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig
from schemas.errors import SnapshotError
from schemas.fields import FieldSchema
from schemas.snapshot import model_identity, refuse_other_model
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.memory import check_learner
from stream_trainer.store import SnapshotStore

PINNED = "pinned"
PIECE_ROWS = 4096    # scored at once

log = structlog.get_logger()


class Reference:
    """A version's weights. version: its number."""

    def __init__(
        self, store: SnapshotStore, number: int, model: ModelConfig, learn: LearnConfig, schema: FieldSchema
    ) -> None:
        """Loads it. Raises SnapshotError if there is no such version or it is another model's, DoesNotFit."""
        manifest = store.manifests("version").get(number)
        if manifest is None:
            raise SnapshotError(f"{store.dir} holds no version {number}: pin a version that is to stay")
        still = replace(                        # an optimiser without state: a row is its weights
            learn, row_optimiser="sgd", first_order_optimiser="same", first_order_rate=0.0, l1=0.0, l2=0.0, guard=False,
        )
        check_learner(model, still, schema, "the reference model's table")
        self._learner = Learner(model, still, schema)
        table = self._learner.table
        refuse_other_model(
            manifest, model_identity(model, table.width), self._learner.schema.identity, "Pin a version of this model."
        )
        store.replay("version", number, table.load)
        dense, _ = store.tensors(manifest)
        self._learner.model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in dense.items()})
        self.version = number

    def score(self, bags: Bags) -> NDArray[np.float32]:
        """(n,) probabilities."""
        starts = range(0, len(bags), PIECE_ROWS)
        return np.concatenate([self._learner.score(bags.slice(at, min(at + PIECE_ROWS, len(bags)))) for at in starts])


def asked_for(
    wanted: str, pinned: Collection[int], store: SnapshotStore, model: ModelConfig, learn: LearnConfig, schema: FieldSchema
) -> Reference | None:
    """What metrics.reference names, if anything. One that is not there any more is said, and the stream goes on without."""
    if not wanted or (wanted == PINNED and not pinned):
        return None
    number = max(pinned) if wanted == PINNED else int(wanted)
    try:
        return Reference(store, number, model, learn, schema)
    except SnapshotError as missing:
        log.error("reference.missing", version=number, why=str(missing), does="goes on without")
        return None
