"""Events of the log published once more: an impression with the labels that came for it, under an id made of its place in
the log, at the log's own time. So it takes the path of every event, and its examples have names ahead of every cursor.

Each record that was published anew carries a header that names the place it came from: the log itself remembers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from ops.kafka.cluster import producer, read_topic
from schemas.config import Settings
from schemas.errors import BadEvent, BrokerError
from schemas.events import Action, Impression, time_text
from schemas.proto import events_pb2
from stream_trainer.joining.join import ANEW, parsed

HEADER = "freshet-anew"      # of their records: the place they came from


class Place(NamedTuple):
    """Where a record stands in the topic `events`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


@dataclass(slots=True)
class Record:
    """A record as it stands in the log. shown: None = it is no impression that can be read. labels: item → the first action
    that makes a label, of those that came for the impression at any time and happened within its window."""

    place: Place
    key: bytes | None
    value: bytes
    shown: Impression | None
    labels: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scan:
    """records: those that were asked for and are still there. done: places that were published anew before. newest_us:
    partition → newest event time."""

    records: dict[Place, Record]
    done: set[Place]
    newest_us: dict[int, int]


def scan(settings: Settings, wanted: Collection[Place]) -> Scan:
    """Read `events` from the first of the places to its end. Raises BrokerError."""
    found = Scan({}, set(), {})
    actions: dict[str, list[tuple[Action, bytes]]] = {}
    first: dict[int, int] = {}
    for place in wanted:
        first[place.partition] = min(place.offset, first.get(place.partition, place.offset))
    wanted = set(wanted)
    for record in read_topic(settings.kafka, "anew", "events", first):
        place = Place(record.partition, record.offset)
        found.done.update(Place(*map(int, came.decode().split("/"))) for name, came in record.headers if name == HEADER)
        try:
            event = parsed(record.value, record.timestamp * 1000, settings.join)
        except BadEvent:
            event = None
        if event is not None:
            found.newest_us[place.partition] = max(found.newest_us.get(place.partition, 0), event.time_us)
        if place in wanted:
            shown = event if isinstance(event, Impression) else None
            found.records[place] = Record(place, record.key, record.value or b"", shown)
        if isinstance(event, Action) and event.action == settings.join.action:
            actions.setdefault(event.impression_id, []).append((event, record.value))
    for one in found.records.values():
        if one.shown is not None:
            _label(one, one.shown, actions, settings)
    return found


def _label(record: Record, shown: Impression, actions: Mapping[str, list[tuple[Action, bytes]]], settings: Settings) -> None:
    end_us = shown.time_us + round(settings.join.window_s * 1e6)
    for action, value in actions.get(shown.impression_id, ()):
        if action.item_id in shown.slate.item_ids and action.time_us < end_us:
            record.labels.setdefault(action.item_id, value)


def messages(records: Iterable[Record], newest_us: Mapping[int, int]) -> Iterator[tuple[Record, bytes, bool]]:
    """(record, value to send, is it the last of the record's): an impression's labels come before it, so that one whose
    header is in the log is there as a whole; what is no impression goes as it is."""
    for record in records:
        if record.shown is not None:
            new_id, time_us = f"{ANEW}{record.place}", newest_us.get(record.place.partition, record.shown.time_us)
            for value in record.labels.values():
                yield record, _renamed(value, new_id, time_us), False
            yield record, _renamed(record.value, new_id, time_us), True
        else:
            yield record, record.value, True


def publish(settings: Settings, records: Collection[Record], newest_us: Mapping[int, int]) -> None:
    """Send them, each to the partition it came from, under its key. Cut off and run again after another scan, it sends the
    rest. Raises BrokerError."""
    sender = producer(settings.kafka, "anew")
    failed: list[BaseException] = []
    try:
        for record, value, last in messages(records, newest_us):
            headers = [(HEADER, str(record.place).encode())] if last else []
            sender.send(
                settings.kafka.topic("events"), value, key=record.key, partition=record.place.partition, headers=headers
            ).add_errback(failed.append)
        sender.flush(timeout=120)
    finally:
        sender.close(timeout=10)
    if failed:
        raise BrokerError(f"the broker did not take an event: {failed[0]}; run it again for the rest") from failed[0]


def _renamed(value: bytes, new_id: str, time_us: int) -> bytes:
    """An event under another id, at another time; all else as it was."""
    if value[0] == 0x7B:
        return orjson.dumps(orjson.loads(value) | {"impression_id": new_id, "time": time_text(time_us)})
    event = events_pb2.Event.FromString(value)
    body = event.impression if event.WhichOneof("body") == "impression" else event.action
    body.impression_id, body.time_us = new_id, time_us
    return event.SerializeToString()
