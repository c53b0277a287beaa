"""What a learner's table takes in memory, stated per row, and whether that fits where it is to be."""

from __future__ import annotations

from dataclasses import replace

import torch

from schemas.config import LearnConfig, ModelConfig
from schemas.fields import FieldSchema
from schemas.memory import Room, Wanted, check, room
from schemas.models import build
from stream_trainer.learning.optimisers import row_optimiser

# Of a touched row, besides its floats (measured: tests/kit/table_memory.py, docs/memory.md).
FLAG_BYTES = 1      # beside the floats, on their device: touched at all, listed for the next version, checkpoint
NUMBER_BYTES = 8    # its number, in the list of rows ever touched, which snapshots go round
PLACE_BYTES = 4     # of the guard: where it keeps the row's last good state


def row_floats(model: ModelConfig, learn: LearnConfig, schema: FieldSchema) -> tuple[int, int]:
    """W, floats of a row that a scorer has; and S, with the optimiser's state, that the trainer has."""
    with torch.device("meta"):
        made = build(model, len(schema.fields), len(schema.crosses), schema.logs, schema.sides)
    state = row_optimiser(learn, made.first_order).state_width(made.row_width - made.counted)
    return made.row_width, made.row_width + state


def wanted(model: ModelConfig, learn: LearnConfig, schema: FieldSchema, who: str) -> Wanted:
    """The table in the machine's memory, of a learner on the CPU. who: "the trainer's table"."""
    narrower = []
    if learn.row_optimiser != "rowwise_adagrad":
        rowwise = replace(learn, row_optimiser="rowwise_adagrad")
        narrower = [("learn.row_optimiser=rowwise_adagrad", _row_bytes(model, rowwise, schema))]
    return Wanted(who, model.bits, _row_bytes(model, learn, schema), narrower)


def _row_bytes(model: ModelConfig, learn: LearnConfig, schema: FieldSchema) -> int:
    return 4 * row_floats(model, learn, schema)[1] + FLAG_BYTES + NUMBER_BYTES + (PLACE_BYTES if learn.guard else 0)


def check_learner(
    model: ModelConfig, learn: LearnConfig, schema: FieldSchema, who: str = "the learner's table", there: Room | None = None
) -> None:
    """Before a learner is made. there: the machine's memory, None = as it is now. Raises DoesNotFit where its table could
    not be touched in full."""
    whole = wanted(model, learn, schema, who)
    if not _on_gpu(learn.device):
        check(whole, there or room())
        return
    device = "cuda" if learn.device == "auto" else learn.device
    beside = NUMBER_BYTES + (PLACE_BYTES if learn.guard else 0)
    free, _ = torch.cuda.mem_get_info(device)
    check(
        replace(whole, row_bytes=whole.row_bytes - beside, narrower=[(to, size - beside) for to, size in whole.narrower]),
        Room(free, f"free on {torch.cuda.get_device_name(device)}"),
    )
    check(Wanted(f"what {who} keeps beside the GPU", model.bits, beside), there or room())


def _on_gpu(device: str) -> bool:
    return torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
