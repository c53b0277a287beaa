"""One step of training: the next batch is scored, its scores are judged, then it is learnt. The trainer and `freshet
evaluate` share it, so that a file and a stream of the same events lead to the same weights and figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_trainer.intake import Batch, Intake
from stream_trainer.learner import Learner
from stream_trainer.progressive import Progressive, Window


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """probabilities: (B,) f32, what the model said before it learnt `batch`. windows: those that became complete."""

    batch: Batch
    probabilities: NDArray[np.float32]
    windows: list[Window]


class Training:
    """What is known of the stream (intake), of the world (learner), and of how good that is (progressive)."""

    def __init__(self, intake: Intake, learner: Learner, progressive: Progressive) -> None:
        self.intake = intake
        self.learner = learner
        self.progressive = progressive

    def step(self, force: bool = False) -> Step | None:
        """Learn the next batch; None if none is ready. force: an unfilled one too. Raises Diverged."""
        batch = self.intake.take(force)
        if batch is None:
            return None
        said = self.learner.learn(batch.bags, batch.labels, batch.weights)
        return Step(batch, said, self.progressive.add(said, batch.labels))
