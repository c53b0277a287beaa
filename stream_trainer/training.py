"""One step of training: the next batch is scored, its scores are judged, then it is learnt. The trainer and `freshet
evaluate` share it, so that a file and a stream of the same events lead to the same weights and figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from stream_trainer.learning.guard import Divergence, Guard
from stream_trainer.learning.intake import Batch, Intake
from stream_trainer.learning.learner import Learner
from stream_trainer.watching.marks import Marker
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.verdicts import Judged
from stream_trainer.watching.windows import Window

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """batch: what was learnt; None where only labels became final. probabilities: (B,) f32, what the model said before it
    learnt it. judged: what was said, now or earlier, of examples whose labels are final now. windows: those that became
    complete. divergence: what the guard did, mostly nothing."""

    batch: Batch | None
    probabilities: NDArray[np.float32]
    judged: Judged
    windows: list[Window]
    divergence: Divergence | None = None


class Training:
    """What is known of the stream (intake), of the world (learner), of how good that is (progressive), and what to do when
    it is not (guard; None: a new one). marker: says by what each example is watched; None: by nothing."""

    def __init__(
        self, intake: Intake, learner: Learner, progressive: Progressive, guard: Guard | None = None,
        marker: Marker | None = None,
    ) -> None:
        self.intake = intake
        self.learner = learner
        self.progressive = progressive
        self.guard = guard or Guard(learner)
        self.marker = marker

    def step(self, force: bool = False) -> Step | None:
        """Learn the next batch; None if there is nothing to learn or judge. force: an unfilled batch too. Raises Diverged."""
        batch = self.intake.take(force)
        settled = self.intake.settled()
        if batch is None and not any(settled):
            return None
        said, found, table = np.empty(0, np.float32), None, self.learner.table
        before = table.firsts
        if batch is not None:
            if self.marker is not None and batch.keys is not None:
                self.marker.note_new(batch.keys, table.counts)
            said, found = self.guard.learn(batch.bags, batch.labels, batch.weights, batch.seen)
        if found is not None:
            self.intake.tallies["relearnt"] += found.relearnt
            log.warning("guard.diverged", does="went back, learnt again with smaller steps", **asdict(found))
        if batch is not None and self.progressive.sampler is not None:
            self.progressive.sampler.note(batch, said, table.first_touched(before))
        judged = self.progressive.verdicts.judge(batch, said, *settled)
        windows = self.progressive.add(judged.probabilities, judged.labels, judged.weights, judged.served, judged.keys)
        return Step(batch, said, judged, windows, found)
