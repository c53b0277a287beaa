"""Groups that were shown while labels had stopped, joined again with the labels that came too late.

The topic `examples` names the groups that were suspect; `events` holds their impressions, the late labels, and what was
rejoined before (ops/events/anew.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from ops.events.anew import Place, Record, publish, scan
from ops.kafka.cluster import read_topic
from schemas.config import Settings
from schemas.errors import FreshetError
from schemas.examples import End, decode

LEAST_SHARE = 0.5        # of the usual labels an item; with fewer, labels are not back


class LabelsAway(FreshetError):
    """The labels of the suspect groups have not come. Waiting for them helps."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the log says. suspect: groups in all; gone: of those, whose impressions retention has deleted; done: that were
    rejoined before; waiting: that were not. newest_us: partition → newest event time."""

    suspect: int
    gone: int
    done: int
    waiting: list[Record]
    newest_us: dict[int, int]
    usual_labels_per_item: float

    @property
    def labels(self) -> int:
        """That have come for the groups that wait."""
        return sum(len(record.labels) for record in self.waiting)

    @property
    def labels_per_item(self) -> float:
        """Of the groups that wait."""
        return self.labels / max(sum(len(record.shown.slate.item_ids) for record in self.waiting if record.shown), 1)


def find(settings: Settings) -> Found:
    """Read the log. Raises BrokerError."""
    suspect: set[Place] = set()
    rows = positives = 0
    for record in read_topic(settings.kafka, "rejoin", "examples"):
        examples = decode(record.value)
        rows += len(examples)
        positives += int(examples.label.sum())
        offsets = examples.ends.offset[examples.ends.reason == End.SUSPECT]
        suspect.update(Place(examples.source_partition, offset) for offset in offsets.tolist())
    found = scan(settings, suspect)
    waiting = [found.records[place] for place in sorted(found.records) if place not in found.done]
    return Found(
        len(suspect), len(suspect) - len(found.records), len(found.records) - len(waiting), waiting, found.newest_us,
        positives / max(rows, 1),
    )


def rejoin(settings: Settings, found: Found, anyway: bool = False) -> int:
    """Publish the groups that wait; how many. Raises LabelsAway where that would teach that nobody clicked (unless anyway),
    BrokerError."""
    if not anyway and found.waiting and found.labels_per_item < LEAST_SHARE * found.usual_labels_per_item:
        raise LabelsAway(
            f"for {len(found.waiting):,} suspect groups {found.labels:,} labels have come, {found.labels_per_item:.4f} an item "
            f"where {found.usual_labels_per_item:.4f} are usual. Nothing was published: wait for the labels, or --anyway"
        )
    publish(settings, found.waiting, found.newest_us)
    return len(found.waiting)
