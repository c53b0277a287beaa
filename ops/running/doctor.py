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

from ops.broker.java import find_java, find_libs
from ops.kafka.cluster import admin
from ops.kafka.topics import PARTITIONS, Mismatch, describe, mismatches, topics_of, updates_retention_s
from ops.machine.ports import holder, is_taken
from ops.settings import Loaded, broker_is_ours, of_scorer
from ops.versions.table_load import SHARE_ADVISED, SHARE_TOO_LARGE, Load, load_of
from schemas.config import SECRETS, Settings, keys, value_of
from schemas.errors import BrokerError, ConfigError, FreshetError, SnapshotError
from schemas.memory import does_not_fit, gib, room
from schemas.updates import CHUNK_RECORD_BYTES
from scorer import memory as scorer_memory
from scorer.ports.tls import read_tls
from scorer.ports.tokens import Role, read_tokens
from scorer.versions.reader import SnapshotReader, own_secondary_dir

BROKER_TIMEOUT_S = 3.0
ROLES: dict[Role, str] = {"scoring": "those who score", "operator": "operators"}
# What a topic may have otherwise than freshet makes it; of these, what matters is looked at by what it is for.
_MAY_DIFFER = {"max.message.bytes", "retention.ms", "segment.ms", "segment.bytes"}


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
    findings = [
        *_software(ours), *_schema(settings), *_memory(settings), *_store(settings), *_scorer_port(settings),
        *_metrics_ports(settings), *_scorer_access(settings), *_scorer_models(settings), *_kafka(settings, ours),
    ]
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
    """What a row takes, and the tables, once every row was touched, against the memory that is there now."""
    from schemas import fields
    from stream_trainer.learning.memory import row_floats, wanted

    try:
        schema = fields.load(settings.model.schema)
        width, wide = row_floats(settings.model, settings.learn, schema)
        table = wanted(settings.model, settings.learn, schema, "the trainer's table")
    except FreshetError as wrong:
        yield Finding("model", settings.model.architecture, str(wrong))
        return
    there, scorer = room(), scorer_memory.wanted(settings)
    found = (
        f"a row is {table.row_bytes:,} bytes in the trainer ({wide} floats: {width} weights and counts, {wide - width} of "
        f"{settings.learn.row_optimiser}; {table.row_bytes - 4 * wide} for the lists), {4 * width:,} in each process of the "
        f"scorer; 2^{settings.model.bits} rows (model.bits) are {gib(table.bytes)} in the trainer when all are touched, and at "
        f"most {gib(scorer.bytes)} in the scorer; {gib(there.bytes)} {there.where}"
    )
    for one in (table, scorer):
        if not there.holds(one.bytes):
            yield Finding("memory", found, does_not_fit(one, there))
            return
    remedy = "trainer and scorer do not fit beside each other: choose a smaller model.bits"
    yield Finding("memory", found, "" if there.holds(table.bytes + scorer.bytes) else remedy)


def _store(settings: Settings) -> Iterator[Finding]:
    """How full the table is, and what the store writes; nothing where the model has no store yet."""
    if not (settings.store_dir / "CURRENT").exists():
        return
    secondary = own_secondary_dir(settings.store_dir.parent / "secondaries", "doctor")
    try:
        with SnapshotReader(settings.store_dir, secondary) as reader:
            load = load_of(reader)
            versions = list(reader.manifests().values())
        with SnapshotReader(settings.store_dir, secondary, "checkpoint") as reader:
            checkpoints = list(reader.manifests().values()) if reader.poll() is not None else []
    except SnapshotError as wrong:
        yield Finding("store", str(settings.store_dir), str(wrong))
        return
    if load is None:
        return
    yield _full(load)
    snapshots = [*versions, *checkpoints]
    held = sum(one.bytes for one in snapshots)
    span_s = (max(one.created_us for one in snapshots) - min(one.created_us for one in snapshots)) / 1e6
    told = f"{len(versions):,} versions and {len(checkpoints):,} checkpoints, {gib(held)}"
    if span_s > 1:
        told += f" written in {span_s:,.0f} s, {gib(round(held / span_s * 3600))} an hour"
    yield Finding("store", f"{told}; each is kept for {settings.snapshot.keep_s:,.0f} s, or as long as it is needed or pinned")


def _full(load: Load) -> Finding:
    found = (
        f"{load.touched:,} of 2^{load.bits} rows touched ({load.share:.1%}), by about {load.ids:,.0f} ids: {load.share:.1%} of "
        f"them share their row"
    )
    if load.share <= SHARE_ADVISED:
        return Finding("table", found)
    if load.touched == load.rows:
        return Finding("table", f"all of 2^{load.bits} rows are touched", "raise model.bits by 2 or more, then look again")
    bits = load.advised_bits
    advice = f"model.bits={bits} would make it {load.share_at(bits):.1%} (another lineage: begin it with `freshet train`)"
    if load.share > SHARE_TOO_LARGE:
        return Finding("table", found, advice)
    return Finding("table", f"{found}; {advice}")


def _scorer_access(settings: Settings) -> Iterator[Finding]:
    """Who may come to the scorer; nothing where all who reach it may."""
    try:
        tls, tokens = read_tls(settings.score), read_tokens(settings.score)
    except ConfigError as wrong:
        yield Finding("scorer access", "certificates or tokens cannot be used", str(wrong))
        return
    asked = [f"tokens for {what}" for role, what in ROLES.items() if tokens.asked[role]]
    if tls is not None:
        asked.insert(0, "TLS" if tls.client_ca is None else "TLS, with the client's certificate")
    if asked:
        yield Finding("scorer access", ", ".join(asked))


def _scorer_models(settings: Settings) -> Iterator[Finding]:
    """Those that score.also names, and whether the tables of all fit; nothing where there is one."""
    if not settings.score.also:
        return
    try:
        models = of_scorer(settings)
        scorer_memory.check_scorer(models, room())
    except FreshetError as wrong:
        yield Finding("scorer's models", f"score.also={settings.score.also}", str(wrong))
        return
    size = sum(scorer_memory.wanted(one, settings.score).bytes for one in models)
    yield Finding("scorer's models", f"{', '.join(one.model.name for one in models)}: at most {gib(size)} together")


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


def _metrics_ports(settings: Settings) -> Iterator[Finding]:
    """Where OpenMetrics are, and whether somebody else is there."""
    own, score = settings.metrics, settings.score
    found, remedy = [], ""
    for process, key, host, port in (
        ("joiner", "metrics.joiner_port", "127.0.0.1", own.joiner_port),
        ("trainer", "metrics.trainer_port", "127.0.0.1", own.trainer_port),
        ("scorer", "score.metrics_port", score.operator_host, score.beside(score.metrics_port, 2)),
    ):
        if port < 0:
            found.append(f"none of the {process} ({key}=-1)")
        elif port == 0:
            found.append(f"{process} on any free port ({key}=0)")
        else:
            found.append(f"{process} on {host}:{port}")
            if is_taken(host, port) and not ("freshet" in (who := holder(port)) or "ops.cli" in who):
                remedy = f"{host}:{port} is held by {who}: end that process, or choose another {key}"
    yield Finding("metrics ports", ", ".join(found), remedy)


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
        wrong = [found for found in mismatches(client, topic) if found.what not in _MAY_DIFFER]
        found = f"{there[topic.name][0]} partition(s)"
        yield Finding(f"topic {topic.name}", "; ".join([found, *map(str, wrong)]), "; ".join(map(_remedy, wrong)))
        if short == "events":
            yield _retention(settings, topic.name, there[topic.name][1])
        if short == "model-updates" and settings.snapshot.updates:
            yield _updates(settings, topic.name, there[topic.name][1])


def _remedy(wrong: Mismatch) -> str:
    if wrong.what == PARTITIONS:
        key = "kafka.event_partitions" if wrong.topic.endswith("events") else "kafka.example_partitions"
        return f"set {key}={wrong.has}, or change the topic with kafka-topics --alter while nothing is running"
    return f"kafka-configs --alter --topic {wrong.topic} --add-config {wrong.what}={wrong.wanted}"


def _updates(settings: Settings, topic: str, config: dict[str, str]) -> Finding:
    """A mirror that begins needs a whole table: what the topic keeps must cover its coming round, twice."""
    needed_s = 2 * settings.snapshot.rotation * settings.snapshot.version_every_s
    kept_s, largest = float(config["retention.ms"]) / 1000, int(config["max.message.bytes"])
    found = (
        f"{'for ever' if kept_s < 0 else f'{kept_s:,.0f} s'}, a whole table comes round in {needed_s / 2:,.0f} s; records up "
        f"to {largest:,} bytes, a version's have up to {CHUNK_RECORD_BYTES:,}"
    )
    change = []
    if 0 <= kept_s < needed_s:
        change.append(f"retention.ms={int(1000 * updates_retention_s(settings))}")
    if largest < CHUNK_RECORD_BYTES:
        change.append(f"max.message.bytes={CHUNK_RECORD_BYTES}")
    remedy = f"kafka-configs --alter --topic {topic} --add-config {','.join(change)}" if change else ""
    return Finding(f"retention {topic}", found, remedy)


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
