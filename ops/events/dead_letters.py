"""Dead letters, read from their topic, and sent again once what made them unusable is mended. One event may have been written
twice by a joiner that was killed: it counts once."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import orjson
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from kafka import TopicPartition
from kafka.errors import KafkaError

from ops.events.anew import Place, Record, publish, scan
from ops.kafka.cluster import consumer, read_topic, refused
from schemas import fields
from schemas.config import Settings
from schemas.errors import BadEvent
from schemas.events import Impression, parse
from schemas.proto import events_pb2

SHOWN_BYTES = 4096   # of an event that is neither JSON nor protobuf


@dataclass(frozen=True, slots=True)
class Letter:
    """An event that could not be used. value: as it came, cut at 256 KiB; size_bytes: before the cut."""

    source_partition: int
    source_offset: int
    reason: str
    text: str
    size_bytes: int
    value: bytes

    @property
    def place(self) -> Place:
        """Of the event in the topic `events`."""
        return Place(self.source_partition, self.source_offset)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of letters. sent: went to `events` again; before: had done so already; unusable: would be dead letters
    again, by reason; gone: neither the log nor the letter has the whole event."""

    sent: int
    before: int
    unusable: dict[str, int]
    gone: int


def letters(settings: Settings) -> Iterator[Letter]:
    """All that the topic holds now, each source record once. Raises BrokerError."""
    seen: set[bytes] = set()
    for record in read_topic(settings.kafka, "dead-letters", "dead-letters"):
        if record.key not in seen:
            seen.add(record.key)
            yield _letter(record.value)


def newest(settings: Settings, most: int) -> tuple[list[Letter], int]:
    """The newest so many of each partition, newest first, and how many records the topic holds; the others are not read. Raises
    BrokerError."""
    topic = settings.kafka.topic("dead-letters")
    reader = consumer(settings.kafka, "dead-letters")
    try:
        places = [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())]
        begins, ends = reader.beginning_offsets(places), reader.end_offsets(places)
    except KafkaError as failed:
        raise refused(settings.kafka, f"{topic} could not be read", failed) from failed
    finally:
        reader.close()
    first = {place.partition: ends[place] - most for place in places}
    found = {record.key: record for record in read_topic(settings.kafka, "dead-letters", "dead-letters", first)}
    in_time = sorted(found.values(), key=lambda record: (record.timestamp, record.offset), reverse=True)
    return [_letter(record.value) for record in in_time[:most]], sum(ends[place] - begins[place] for place in places)


def replay(settings: Settings, chosen: Collection[Letter], again: bool = False) -> Replayed:
    """Send events again that can be used now, impressions with the labels that came for them (ops/events/anew.py). again: also
    those that were sent before. Raises BrokerError."""
    encoder = fields.Encoder(fields.load(settings.model.schema), training=True)
    found = scan(settings, [letter.place for letter in chosen])
    before = gone = 0
    unusable: Counter[str] = Counter()
    sending: list[Record] = []
    for letter in chosen:
        if letter.place in found.done and not again:
            before += 1
            continue
        record = found.records.get(letter.place)
        if record is None and len(letter.value) < letter.size_bytes:
            gone += 1
            continue
        record = record or Record(letter.place, None, letter.value, None)
        try:
            event = parse(record.value)
            if isinstance(event, Impression):
                record.shown = event
                encoder.encode(event.slate)
        except BadEvent as bad:
            unusable[bad.reason] += 1
            continue
        sending.append(record)
    publish(settings, sending, found.newest_us)
    return Replayed(len(sending), before, dict(unusable), gone)


def readable(value: bytes) -> str:
    """An event for a person: JSON with indents, protobuf as text, else bytes with their offsets."""
    if value[:1] == b"{":
        try:
            return orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
        except orjson.JSONDecodeError:
            return value.decode(errors="backslashreplace")
    try:
        event = events_pb2.Event.FromString(value)
        if event.WhichOneof("body"):
            return text_format.MessageToString(event, as_utf8=True)
    except DecodeError:
        pass
    shown = value[:SHOWN_BYTES]
    lines = []
    for at in range(0, len(shown), 16):
        part = shown[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:08x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines) + (f"\n… {len(value) - SHOWN_BYTES:,} bytes more" if len(value) > SHOWN_BYTES else "")


def _letter(value: bytes) -> Letter:
    row = orjson.loads(value)
    return Letter(
        row["source_partition"], row["source_offset"], row["reason"], row["text"], row["size_bytes"],
        base64.b64decode(row["value_base64"]),
    )
