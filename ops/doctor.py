"""`freshet doctor`: each setting with where it came from, and whether what must fit together does.

Each check is a function of the settings that yields findings: what was looked at, what was found, and, where it does
not hold, what to do about it.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from ops.broker.java import find_java, find_libs
from ops.cluster import admin
from ops.ports import holder, is_taken
from ops.settings import Loaded, broker_is_ours
from ops.topics import PARTITIONS, Mismatch, describe, mismatches, topics_of
from schemas.config import SECRETS, Settings, keys, value_of
from schemas.errors import BrokerError, ConfigError, FreshetError

BROKER_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. remedy: what to do; empty = it is as it must be."""

    check: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy


@dataclass(frozen=True, slots=True)
class Report:
    """Everything doctor says."""

    settings: dict[str, dict[str, Any]]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For --json: keys are stable."""
        return {
            "ok": self.ok,
            "checks": [asdict(finding) | {"ok": finding.ok} for finding in self.findings],
            "settings": self.settings,
        }


def examine(loaded: Loaded, environ: Mapping[str, str]) -> Report:
    """Look at everything. Changes nothing, and takes a few seconds at most."""
    settings, ours = loaded.settings, broker_is_ours(loaded, environ)
    findings = [*_software(ours), *_schema(settings), *_memory(settings), *_scorer_port(settings), *_kafka(settings, ours)]
    return Report(listing(loaded), findings)


def listing(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Dotted key → value and origin, as --json prints them."""
    listed = {}
    for key in keys():
        value = value_of(loaded.settings, key)
        value = list(value) if isinstance(value, tuple) else value
        plain = value if isinstance(value, str | int | float | bool | list) else str(value)
        if key in SECRETS and plain:
            plain = "(hidden)"
        listed[key] = {"value": plain, "from": loaded.origins[key]}
    return listed


def _software(broker_is_ours: bool) -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    try:
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        yield Finding("torch", f"{importlib.metadata.version('torch')}, {gpu}")
    except ImportError as wrong:
        yield Finding("torch", str(wrong), "run `make setup`")
    if not broker_is_ours:
        return
    try:
        java, libs = find_java(), find_libs()
        yield Finding("java", f"{java.version} at {java.path}; Kafka's jars in {libs}")
    except BrokerError as wrong:
        yield Finding("java", "our own broker cannot start", str(wrong))


def _schema(settings: Settings) -> Iterator[Finding]:
    from schemas import fields

    try:
        schema = fields.load(settings.model.schema)
    except FreshetError as wrong:
        yield Finding("schema", settings.model.schema, str(wrong))
    else:
        yield Finding("schema", f"{settings.model.schema}: {len(schema.fields)} fields, digest {schema.digest:016x}")


def _memory(settings: Settings) -> Iterator[Finding]:
    """The trainer's table and the scorer's, once every row was touched, against the memory that is free now."""
    from schemas import fields
    from schemas.models import build
    from stream_trainer.optimisers import row_optimiser

    try:
        width = build(settings.model, len(fields.load(settings.model.schema).fields)).row_width
    except FreshetError as wrong:
        yield Finding("model", settings.model.architecture, str(wrong))
        return
    rows = 1 << settings.model.bits
    trainer = rows * 4 * (width + row_optimiser(settings.learn).state_width(width))
    scorer = rows * 4 * width
    free = psutil.virtual_memory().available
    found = (
        f"{rows:,} rows (model.bits={settings.model.bits}): {_mib(trainer)} in the trainer, {_mib(scorer)} in each "
        f"scorer, when all are touched; {_mib(free)} free"
    )
    remedy = "" if trainer + scorer < free else "choose a smaller model.bits (each bit halves it), or free memory"
    yield Finding("memory", found, remedy)


def _scorer_port(settings: Settings) -> Iterator[Finding]:
    host, port = settings.score.host, settings.score.port
    if port == 0:
        yield Finding("scorer port", "any free one (score.port=0)")
    elif not is_taken(host, port):
        yield Finding("scorer port", f"{host}:{port} is free")
    else:
        who = holder(port)
        ours = "freshet" in who or "ops.cli" in who
        remedy = "" if ours else "end that process, or choose another score.port"
        yield Finding("scorer port", f"{host}:{port} is held by {who}", remedy)


def _kafka(settings: Settings, ours: bool) -> Iterator[Finding]:
    bootstrap = settings.kafka.bootstrap
    with ExitStack() as open_until_done:
        try:
            client = open_until_done.enter_context(admin(settings.kafka, BROKER_TIMEOUT_S))
        except ConfigError as wrong:
            yield Finding("kafka", f"{bootstrap}, kafka.security={settings.kafka.security}", str(wrong))
            return
        except BrokerError as wrong:
            ask = "is it running, and is kafka.bootstrap right?"
            yield Finding("kafka", str(wrong), "start it: `make run`, or `freshet broker`" if ours else ask)
            return
        brokers = client.describe_cluster()["brokers"]
        yield Finding("kafka", f"{len(brokers)} broker(s) answer at {bootstrap}")
        yield from _topics(settings, client)


def _topics(settings: Settings, client: Any) -> Iterator[Finding]:
    wanted = topics_of(settings)
    there = describe(client, [topic.name for topic in wanted.values()])
    for short, topic in wanted.items():
        if topic.name not in there:
            remedy = "`freshet topics` creates it" if settings.kafka.create_topics else "`freshet topics` says what to ask for"
            yield Finding(f"topic {topic.name}", "is not there", remedy)
            continue
        wrong = [found for found in mismatches(client, topic) if found.what != "max.message.bytes"]
        found = f"{there[topic.name][0]} partition(s)"
        yield Finding(f"topic {topic.name}", "; ".join([found, *map(str, wrong)]), "; ".join(map(_remedy, wrong)))
        if short == "events":
            yield _retention(settings, topic.name, there[topic.name][1])


def _remedy(wrong: Mismatch) -> str:
    if wrong.what == PARTITIONS:
        key = "kafka.event_partitions" if wrong.topic.endswith("events") else "kafka.example_partitions"
        return f"set {key}={wrong.has}, or change the topic with kafka-topics --alter while nothing is running"
    return f"kafka-configs --alter --topic {wrong.topic} --add-config {wrong.what}={wrong.wanted}"


def _retention(settings: Settings, topic: str, config: dict[str, str]) -> Finding:
    """A joiner that starts again reads from its oldest open impression, the second pass of mode corrected from that much
    earlier: the log must still have it."""
    needed_s = 2 * (settings.join.window_s + settings.join.lateness_s)
    needed_s += settings.join.correct_after_s if settings.join.mode == "corrected" else 0
    kept_s = float(config["retention.ms"]) / 1000
    found = f"{'for ever' if kept_s < 0 else f'{kept_s:,.0f} s'}, at least {needed_s:,.0f} s needed"
    if 0 <= kept_s < needed_s:
        wanted = f"retention.ms={int(needed_s * 1000)}"
        return Finding(f"retention {topic}", found, f"kafka-configs --alter --topic {topic} --add-config {wanted}")
    if config.get("retention.bytes", "-1") != "-1":
        found += f"; retention.bytes={config['retention.bytes']} may cut it shorter when traffic is high"
    return Finding(f"retention {topic}", found)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
