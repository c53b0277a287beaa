"""Settings: one frozen dataclass per section, built once, passed down.

Rising order: defaults here, `freshet.toml`, `FRESHET_…` variables, flags (`--set section.key=value`). This file turns
plain mappings into checked settings and remembers where each value came from; reading files and the environment is
the caller's work (ops/cli.py), so that nothing below the command line depends on either.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import types
import typing
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from schemas.errors import ConfigError

Activation = Literal["relu", "tanh", "prelu", "dice"]
Product = Literal["inner", "outer", "both"]
RowOptimiserName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"]
FirstOrderOptimiserName = Literal["same", "sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"]
Security = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
DenseOptimiserName = Literal["adam", "adagrad"]
Precision = Literal["auto", "bf16", "fp32"]
JoinMode = Literal["eager", "wait", "immediate", "corrected"]
NegativeCorrection = Literal["weight", "serving"]
T = TypeVar("T")


def _at_least(section: str, key: str, value: float, least: float, why: str) -> None:
    if not value >= least:
        raise ConfigError(f"{section}.{key}={value}: must be at least {least} ({why})")


def the_one(key: str, name: str, known: Mapping[str, T]) -> T:
    """What stands there under that name. Raises ConfigError naming the nearest."""
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{key}={name}: no such name (nearest: {near}; there are {', '.join(known)})")
    return known[name]


def _one_of(section: str, key: str, name: str, literal: Any) -> None:
    the_one(f"{section}.{key}", name, dict.fromkeys(typing.get_args(literal)))


def _seconds_of(text: str) -> float:
    """Since 1970: of a number, or of an ISO 8601 time with a zone; NaN of anything else."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return math.nan if moment.tzinfo is None else moment.timestamp()


def is_loopback(host: str) -> bool:
    """Whether an address is this machine seen from itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, kw_only=True, slots=True)
class KafkaConfig:
    """Where the log is."""

    bootstrap: str = "127.0.0.1:9092"  # host:port,… of any Kafka 2.8 to 4.x; FRESHET_KAFKA sets it too
    prefix: str = ""                   # put before every topic and group name
    event_partitions: int = 1          # used when freshet creates `events`
    example_partitions: int = 1        # used when freshet creates `examples`
    session_timeout_s: float = 6.0     # a killed worker holds its partitions this long; 6 s is the broker's minimum
    replication: int = 1               # used when freshet creates topics
    create_topics: bool = True         # false: somebody else does, and missing ones are an error that names them
    client_id: str = "freshet"         # in the broker's logs and quotas: freshet-joiner, freshet-trainer …
    security: Security = "PLAINTEXT"   # security.protocol of the brokers' port
    sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    username: str = ""                 # SASL
    password: str = field(default="", repr=False)  # SASL; FRESHET_KAFKA_PASSWORD, or better a file:
    password_file: str = ""            # its first line is the password
    ca_file: str = ""                  # PEM of the authority that signed the brokers' certificates; none = the system's
    certificate_file: str = ""         # PEM of our own certificate, where the brokers ask for one (mTLS)
    key_file: str = ""                 # PEM of its key, not encrypted; none = it stands in certificate_file

    def __post_init__(self) -> None:
        _at_least("kafka", "event_partitions", self.event_partitions, 1, "a topic needs one")
        _at_least("kafka", "example_partitions", self.example_partitions, 1, "a topic needs one")
        _at_least("kafka", "session_timeout_s", self.session_timeout_s, 6, "the broker's own minimum")
        _one_of("kafka", "security", self.security, Security)
        _one_of("kafka", "sasl_mechanism", self.sasl_mechanism, SaslMechanism)
        if self.sasl and not (self.username and (self.password or self.password_file)):
            raise ConfigError(
                f"kafka.security={self.security}: needs kafka.username, and kafka.password_file or FRESHET_KAFKA_PASSWORD"
            )
        if self.password and self.password_file:
            raise ConfigError("kafka.password and kafka.password_file are both set: drop one")
        if not self.sasl and (self.username or self.password or self.password_file):
            raise ConfigError(
                f"kafka.security={self.security} asks for no name or password, but one is set: "
                "kafka.security=SASL_SSL or SASL_PLAINTEXT uses them"
            )
        if not self.tls and (self.ca_file or self.certificate_file):
            raise ConfigError(
                f"kafka.security={self.security} encrypts nothing, but a certificate is set: kafka.security=SSL or SASL_SSL"
            )
        if self.key_file and not self.certificate_file:
            raise ConfigError("kafka.key_file without kafka.certificate_file: a key needs its certificate")

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """Whether a name and a password are asked for."""
        return self.security.startswith("SASL")

    def topic(self, name: str) -> str:
        """Full name of one of our topics: events, examples, dead-letters, model-updates, model-control."""
        return self.prefix + name


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinConfig:
    """How events become labelled examples (all times are event time)."""

    mode: JoinMode = "eager"           # when a label is final: docs/labels.md
    action: str = "click"              # the action that makes a label 1
    value_as_weight: bool = False      # a positive weighs its action's value; eager and wait
    negative_rate: float = 1.0         # share of the negatives that are learnt, chosen by a hash of their identity
    negative_correction: NegativeCorrection = "weight"  # each weighs 1/rate, or what is served is lower by ln 1/rate
    negative_seed: int = 1             # another one keeps others
    correct_after_s: float = 259_200.0  # mode corrected: how long after its impression an action still corrects its label
    window_s: float = 10.0             # how long after its impression an action still counts
    lateness_s: float = 0.0            # how far out of order the log may be before a group closes
    max_ahead_s: float = 5.0           # a time further ahead of its record's Kafka timestamp is clamped to that
    tick_every_s: float = 0.2          # wall seconds of quiet before a joiner writes time into a partition
    hold_timeout_s: float = 60.0       # a replay silent this long has died: ticks go on
    suspect_labels: float = 50.0       # labels missing in a row, at the usual rate, that mean they have stopped (chance alone
                                       # misses e^-50; one user's whole day 30); 0 = what has no label is always a negative
    record_rows: int = 1024            # most examples in one record
    linger_s: float = 0.02             # wall seconds an unfinished record waits for more
    commit_every_s: float = 1.0        # wall seconds between two commits of the smallest held offset
    memory_mb: int = 2048              # what waits for its label may take so much; a joiner that needs more stops and says so

    def __post_init__(self) -> None:
        _at_least("join", "window_s", self.window_s, 0.1, "shorter than any click")
        _at_least("join", "lateness_s", self.lateness_s, 0, "a duration")
        _at_least("join", "max_ahead_s", self.max_ahead_s, 0, "a duration")
        _at_least("join", "tick_every_s", self.tick_every_s, 0.01, "ticks are records too")
        _at_least("join", "memory_mb", self.memory_mb, 1, "an open impression takes 2 to 30 kB")
        _at_least("join", "record_rows", self.record_rows, 1, "a record holds one example")
        if 0 < self.suspect_labels < 10:
            raise ConfigError(f"join.suspect_labels={self.suspect_labels}: at least 10 (fewer go missing by chance), 0 = never")
        _at_least("join", "suspect_labels", self.suspect_labels, 0, "0 = never")
        if self.window_s > 3600:
            raise ConfigError(f"join.window_s={self.window_s}: at most 3600 (every open impression is held in memory)")
        _one_of("join", "mode", self.mode, JoinMode)
        _one_of("join", "negative_correction", self.negative_correction, NegativeCorrection)
        if not 0 < self.negative_rate <= 1:
            raise ConfigError(f"join.negative_rate={self.negative_rate}: above 0, at most 1 (1 = all negatives are learnt)")
        twice = self.mode in ("immediate", "corrected")
        if twice and self.negative_rate < 1 and self.negative_correction == "serving":
            raise ConfigError(
                f"join.negative_correction=serving with join.mode={self.mode}: its negatives are put right by later examples, "
                "which a shift of what is served does not know; set join.negative_correction=weight"
            )
        if twice and self.value_as_weight:
            raise ConfigError(
                f"join.value_as_weight with join.mode={self.mode}: a value is known only after its impression was learnt as a "
                "negative; set join.mode to eager or wait"
            )
        if self.mode == "corrected" and not self.correct_after_s > self.window_s:
            raise ConfigError(
                f"join.correct_after_s={self.correct_after_s}: must be longer than join.window_s={self.window_s}, or there is "
                "nothing to correct"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What is learnt. Changing anything here but `name` starts another lineage."""

    name: str = "appstore"
    schema: str = "appstore"                 # a bundled field schema (schemas/fieldsets/NAME.toml) or a path to one
    architecture: str = "deepfm"
    bits: int = 20                           # the table has 2^bits rows
    factors: int = 10                        # K of the DeepFM paper
    hidden: tuple[int, ...] = (64,)          # the paper's 400,400,400: + .001 AUC on Criteo at a third of the speed
    heads: int = 1                           # networks side by side, each with a loss of its own; scores are their mean
    dropout: float = 0.0                     # chance that a neuron is dropped
    init_scale: float = 0.01                 # standard deviation of a new row's factors
    seed: int = 1
    activation: Activation = "relu"          # between the layers of a network
    batch_norm: bool = False                 # before each activation (NFM: and of what goes into the network)
    attention_factors: int = 8               # AFM: width of the attention network
    cross_layers: int = 3                    # DCN
    product: Product = "inner"               # PNN: inner = IPNN, outer = OPNN, both = PNN*
    statistics: bool = True                  # DeepFM: rows count examples and clicks, and it reads them (ffm_stats always)
    fnn_pretrain_rows: int = 100_000         # FNN: examples learnt as an FM before its network takes over

    def __post_init__(self) -> None:
        _one_of("model", "activation", self.activation, Activation)
        _one_of("model", "product", self.product, Product)
        _at_least("model", "attention_factors", self.attention_factors, 1, "attention has a width")
        _at_least("model", "cross_layers", self.cross_layers, 0, "0 = no crossing")
        _at_least("model", "fnn_pretrain_rows", self.fnn_pretrain_rows, 0, "0 = the network from the start")
        if not 8 <= self.bits <= 30:
            raise ConfigError(f"model.bits={self.bits}: from 8 to 30")
        _at_least("model", "factors", self.factors, 1, "a row has at least one factor")
        _at_least("model", "heads", self.heads, 1, "1 = the papers' one network")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout}: from 0 to below 1 (the chance to drop, not to keep)")
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"model.hidden={self.hidden}: every layer needs a width of at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig:
    """How it is learnt."""

    start_at: str = "earliest"         # of `examples`, where a model has no cursor: earliest (skips nothing), latest, or a
                                       # time, ISO 8601 with a zone or seconds since 1970: examples written then or later
    device: str = "auto"               # auto, cpu, cuda, cuda:1 …
    threads: int = 1                   # torch threads; part of what makes two runs equal bit for bit
    precision: Precision = "auto"      # of hidden layers' matrix products: bf16, fp32; auto = bf16 for those large enough to
                                       # gain by it, where the machine multiplies bf16. All else is fp32
    batch_rows: int = 256
    batch_wait_s: float = 0.1          # wall seconds an unfilled batch waits; 0 = cut by count alone (reproducible)
    row_optimiser: RowOptimiserName = "adagrad"
    row_rate: float = 0.015            # of Adagrad; Adam wants .002 (docs/lab.md)
    dense_rate: float = 0.015          # of the dense weights; Adam wants .001
    first_order_optimiser: FirstOrderOptimiserName = "same"  # of the rows' first-order weights; same = row_optimiser
    first_order_rate: float = 0.0      # 0 = row_rate
    dense_optimiser: DenseOptimiserName = "adagrad"
    ftrl_beta: float = 1.0             # FTRL: steps of rate/(beta + √Σg²)
    l1: float = 0.0                    # FTRL: more of it, more first-order weights that are exactly 0
    l2: float = 0.0                    # FTRL
    clip: float = 0.0                  # longest gradient, of each row and of all dense weights together; 0 = any
    decay: float = 0.0                 # share of a weight lost per step, times its rate; not FTRL's (l2), not of biases
    guard: bool = True                 # notice divergence, take the last good state, go on with smaller steps
    guard_rows: int = 4096             # examples between two looks; up to four times as many are kept to be learnt again
    guard_margin: float = 0.005        # it has diverged when the loss is worse by this share of always saying the click rate
    guard_floor: float = 1 / 16        # rates are halved as far as to this share of those above

    def __post_init__(self) -> None:
        _ = self.start_us
        _at_least("learn", "batch_rows", self.batch_rows, 1, "a batch holds one example")
        _at_least("learn", "batch_wait_s", self.batch_wait_s, 0, "a duration")
        _at_least("learn", "threads", self.threads, 1, "torch needs one")
        _one_of("learn", "precision", self.precision, Precision)
        _one_of("learn", "row_optimiser", self.row_optimiser, RowOptimiserName)
        _one_of("learn", "first_order_optimiser", self.first_order_optimiser, FirstOrderOptimiserName)
        _one_of("learn", "dense_optimiser", self.dense_optimiser, DenseOptimiserName)
        for key in ("ftrl_beta", "l1", "l2", "clip", "decay"):
            _at_least("learn", key, getattr(self, key), 0, "0 = none")
        if not 0 <= self.first_order_rate <= 1:
            raise ConfigError(f"learn.first_order_rate={self.first_order_rate}: from 0 (= learn.row_rate) to 1")
        if (self.l1 or self.l2) and "ftrl" not in (self.row_optimiser, self.first_order_optimiser):
            raise ConfigError(
                f"learn.l1={self.l1}, learn.l2={self.l2}: only FTRL has them; set learn.row_optimiser or "
                "learn.first_order_optimiser to ftrl, or use learn.decay"
            )
        _at_least("learn", "guard_rows", self.guard_rows, 64, "the loss of fewer examples is noise")
        _at_least("learn", "guard_margin", self.guard_margin, 0, "0 = any that is no chance")
        if not 0 < self.guard_floor <= 1:
            raise ConfigError(f"learn.guard_floor={self.guard_floor}: above 0, at most 1 (1 = say so, change nothing)")
        for key in ("row_rate", "dense_rate"):
            if not 0 < getattr(self, key) <= 1:
                raise ConfigError(f"learn.{key}={getattr(self, key)}: above 0, at most 1")

    @property
    def start_us(self) -> int | None:
        """The time of start_at in microseconds since 1970; None where it is a word. Raises ConfigError."""
        if self.start_at in ("earliest", "latest"):
            return None
        seconds = _seconds_of(self.start_at)
        if not 0 < seconds < 1e11:
            raise ConfigError(
                f"learn.start_at={self.start_at}: earliest, latest, or a time like 2026-11-20T10:00:00Z (with its zone) or "
                "1795168800 (seconds since 1970)"
            )
        return round(seconds * 1e6)

    @property
    def first_order_rule(self) -> str:
        """The optimiser that first-order weights have apart from the rest of a row, with a state of its own; same = none."""
        own = self.first_order_optimiser
        return self.row_optimiser if own == "same" and self.first_order_rate else own


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotConfig:
    """When the trainer writes what, and how long it is kept."""

    version_every_s: float = 0.5       # what serving needs
    checkpoint_every_s: float = 10.0   # what resuming needs
    rotation: int = 64                 # each carries the next 1/rotation of all rows ever touched
    keep_s: float = 300.0              # versions older than this go, unless the newest whole table needs them
    updates: bool = False              # `freshet run` also sends versions to model-updates, for scorers on other machines

    def __post_init__(self) -> None:
        _at_least("snapshot", "version_every_s", self.version_every_s, 0.05, "a version costs a few ms")
        _at_least("snapshot", "checkpoint_every_s", self.checkpoint_every_s, 0.1, "a checkpoint costs tens of ms")
        _at_least("snapshot", "rotation", self.rotation, 1, "1 = every snapshot holds every row touched")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """The gRPC service."""

    host: str = "127.0.0.1"
    port: int = 50051                  # 0 = any free port
    workers: int = 0                   # processes that answer, each with the whole table; 0 = one per core, at most 4
    threads: int = 2                   # requests handled at once, in each
    in_flight: int = 256               # calls begun and not ended, in each; more are refused (RESOURCE_EXHAUSTED), so that
                                       # none waits without end. Open health and reflection streams count
    precision: Precision = "auto"      # of hidden layers' matrix products, as learn.precision: bf16 moves a probability by up
                                       # to .001 (docs/bench-score.md)
    poll_s: float = 0.02               # wall seconds between two looks for a new version
    strict: bool = False               # refuse fields the schema does not know, instead of a warning
    tls_certificate_file: str = ""     # PEM of the scorer's certificate and its chain: all its ports speak TLS alone
    tls_key_file: str = ""             # PEM of its key, not encrypted; none = it stands in tls_certificate_file
    tls_client_ca_file: str = ""       # PEM of the authorities whose certificates clients must show (mTLS); none = all may come
    tokens_file: str = ""              # a token a line: whoever scores must send one of them; none = nobody is asked
    tokens: str = field(default="", repr=False)  # the same from FRESHET_SCORE_TOKENS, spaces between them
    operator_host: str = "127.0.0.1"   # of both ports for operators
    operator_port: int = -1            # gRPC: status, health; 0 = any free port, -1 = score.port + 1
    metrics_port: int = -1             # HTTP: /metrics, /healthz; 0 = any free port, -1 = score.port + 2
    operator_tokens_file: str = ""     # as tokens_file, for the operators' ports; a token is good for one of the two
    operator_tokens: str = field(default="", repr=False)  # the same from FRESHET_SCORE_OPERATOR_TOKENS
    also: str = ""                     # other models that this scorer serves: their freshet.toml files, commas between them
    caller_ca_file: str = ""           # freshet's own callers (score, simulate, run, demo) believe a scorer whose certificate
                                       # these authorities signed (PEM); none = those that gRPC brings
    caller_certificate_file: str = ""  # PEM of the certificate that they show, where the scorer asks for one
    caller_key_file: str = ""          # PEM of its key; none = it stands in caller_certificate_file
    caller_token_file: str = ""        # the token that they send is its first line
    caller_token: str = field(default="", repr=False)  # the same from FRESHET_SCORE_CALLER_TOKEN

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"score.port={self.port}: from 0 to 65535")
        for key in ("operator_port", "metrics_port"):
            if not -1 <= getattr(self, key) <= 65535:
                raise ConfigError(f"score.{key}={getattr(self, key)}: from 0 to 65535, or -1: next to score.port")
        for key in ("tls_key_file", "tls_client_ca_file"):
            if getattr(self, key) and not self.tls:
                raise ConfigError(f"score.{key} without score.tls_certificate_file: TLS begins with the scorer's certificate")
        if self.caller_key_file and not self.caller_certificate_file:
            raise ConfigError("score.caller_key_file without score.caller_certificate_file: a key needs its certificate")
        for key in ("tokens", "operator_tokens", "caller_token"):
            if getattr(self, key) and getattr(self, f"{key}_file"):
                raise ConfigError(f"score.{key} and score.{key}_file are both set: drop one")
        for tokens, host, what in (
            (self.tokens or self.tokens_file, self.host, "score.host"),
            (self.operator_tokens or self.operator_tokens_file, self.operator_host, "score.operator_host"),
        ):
            if tokens and not self.tls and not is_loopback(host):
                raise ConfigError(
                    f"{what}={host} with tokens and without TLS: everybody on the way could read them; set "
                    f"score.tls_certificate_file and score.tls_key_file, or {what}=127.0.0.1 behind a proxy that speaks TLS"
                )
        _at_least("score", "workers", self.workers, 0, "0 = one per core, at most 4")
        _one_of("score", "precision", self.precision, Precision)
        _at_least("score", "in_flight", self.in_flight, self.threads, "as many as there are threads")
        _at_least("score", "threads", self.threads, 1, "someone must answer")
        _at_least("score", "poll_s", self.poll_s, 0.001, "polling faster only heats")

    @property
    def tls(self) -> bool:
        """Whether the scorer's ports speak TLS."""
        return bool(self.tls_certificate_file)

    def beside(self, port: int, step: int) -> int:
        """The port of that setting where -1 means so many above score.port; 0 = any free one."""
        return port if port >= 0 else (self.port + step if self.port else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """What is logged about the model before it learns, and about what was served."""

    watch: bool = True                 # by slice, within groups, of what was served, of the fields; false: of windows alone
    window_rows: int = 20_000          # examples per logged window
    half_life_rows: int = 1_000_000    # examples after which one counts half in the decayed figures
    group: str = "slate"               # AUC is also taken within each of these and averaged: slate, or a categorical field
    slice_values: int = 50             # of each field that the schema calls a slice, so many values a window, the most frequent
    new_below: int = 100               # of a field with slice = "new", a value that fewer examples had is new; where rows count
                                       # none (model.statistics=false), one that none had
    sample: int = 16                   # one example in so many is looked at field by field, and by the reference; 0 = none
    reference: str = ""                # a version that scores the sample beside the model: its number, or pinned (the newest
                                       # that is pinned); none = there is none
    joiner_port: int = 9464            # OpenMetrics on 127.0.0.1; a second joiner of a machine has the next one. 0 = any free,
                                       # -1 = none; where one is taken, that is said and the process goes on without
    trainer_port: int = 9480           # the same
    keep_mb: int = 256                 # of the log of windows and slices (Parquet); the oldest go

    def __post_init__(self) -> None:
        _at_least("metrics", "window_rows", self.window_rows, 100, "an AUC of fewer rows is noise")
        _at_least("metrics", "half_life_rows", self.half_life_rows, 1, "a number of examples")
        _at_least("metrics", "slice_values", self.slice_values, 1, "a slice has a value")
        _at_least("metrics", "new_below", self.new_below, 1, "1 = what no example had")
        _at_least("metrics", "sample", self.sample, 0, "0 = no figures per field")
        if self.reference not in ("", "pinned") and not self.reference.isdecimal():
            raise ConfigError(f"metrics.reference={self.reference}: a version's number, pinned, or empty: none")
        if self.reference and not self.sample:
            raise ConfigError(f"metrics.reference={self.reference}: needs a sample (metrics.sample=16)")
        for key in ("joiner_port", "trainer_port"):
            if not -1 <= getattr(self, key) <= 65535:
                raise ConfigError(f"metrics.{key}={getattr(self, key)}: from 1 to 65535, 0 = any free one, -1 = none")
        _at_least("metrics", "keep_mb", self.keep_mb, 1, "a window of a hundred slices takes 12 kB")


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmsConfig:
    """Who hears of an alarm, besides the log and var/metrics/NAME/alarms.jsonl, and what is one about the stream itself (what
    drift is, the stream's own past says: docs/drift.md)."""

    webhook: str = field(default="", repr=False)  # http(s)://… that each alarm is POSTed to, as JSON; none = nobody
    timeout_s: float = 5.0             # that one try may take
    lag_s: float = 60.0                # records wait, and the newest that was read is older than this
    version_age_s: float = 60.0        # examples are learnt, and the newest version is older than this
    dead_letter_share: float = 0.01    # of the events of a minute
    late_share: float = 0.1            # of the actions of a minute: too late, or without an impression

    def __post_init__(self) -> None:
        try:
            url = urllib.parse.urlsplit(self.webhook)
            right = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
        except ValueError:
            right = False
        if self.webhook and not right:
            raise ConfigError("alarms.webhook: must be http://HOST… or https://HOST…; alarms are POSTed there")
        _at_least("alarms", "timeout_s", self.timeout_s, 0.1, "an answer takes its time")
        for key in ("lag_s", "version_age_s"):
            _at_least("alarms", key, getattr(self, key), 1, "figures are taken once a second")
        for key in ("dead_letter_share", "late_share"):
            if not 0 < getattr(self, key) <= 1:
                raise ConfigError(f"alarms.{key}={getattr(self, key)}: above 0, at most 1 (1 = never)")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """When a version is held back: docs/gate.md. Wall time; what is called usual is the stream's own past."""

    on: bool = True
    rows: int = 16_384                 # examples judged at once; a thirty-second of them, where they come slowly
    history_rows: int = 20_000         # examples of a model before it has a usual, and anything is held back
    evidence: float = 20.0             # log-likelihood ratio that is enough; chance alone has it once in e^20 looks
    rate_factor: float = 2.0           # what it is evidence for: clicks that are so many times what was said, or that little
    value_factor: float = 4.0          # one value's clicks that are so many times its own
    jump: float = 1.5                  # log-odds: a score that moved by more has jumped
    jump_share: float = 0.3            # of the scores of a sample that may
    reference_s: float = 120.0         # how old that sample is, at least
    calm_s: float = 5.0                # all is plausible for so long before a version goes out again
    longest_s: float = 600.0           # a hold gives way then (an operator's own does not), and the same is let pass as long

    def __post_init__(self) -> None:
        _at_least("gate", "rows", self.rows, 1024, "the clicks of fewer examples are noise")
        _at_least("gate", "history_rows", self.history_rows, self.rows, "one look at least")
        _at_least("gate", "evidence", self.evidence, 10, "chance alone has less every few hours")
        _at_least("gate", "rate_factor", self.rate_factor, 1.25, "less is traffic's own ups and downs")
        _at_least("gate", "value_factor", self.value_factor, 1.25, "less is fashion")
        _at_least("gate", "jump", self.jump, 0.1, "scores move with everything that is learnt")
        if not 0 < self.jump_share <= 1:
            raise ConfigError(f"gate.jump_share={self.jump_share}: above 0, at most 1 (1 = never by that)")
        for key in ("reference_s", "calm_s"):
            _at_least("gate", key, getattr(self, key), 0, "a duration")
        _at_least("gate", "longest_s", self.longest_s, 1, "a hold that ends at once holds nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class DashboardConfig:
    """The web page of `freshet dashboard`."""

    host: str = "127.0.0.1"            # plain HTTP, and everybody who reaches it may look: elsewhere, through a tunnel
    port: int = 8050                   # 0 = any free port
    token: str = field(default="", repr=False)  # what must be typed in before the page gives orders, from
                                       # FRESHET_DASHBOARD_TOKEN; without one it gives none
    token_file: str = ""               # its first line is the token

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"dashboard.port={self.port}: from 0 to 65535")
        if self.token and self.token_file:
            raise ConfigError("dashboard.token and dashboard.token_file are both set: drop one")
        if (self.token or self.token_file) and not is_loopback(self.host):
            raise ConfigError(
                f"dashboard.host={self.host} with a token: the page speaks plain HTTP, so everybody on the way could read it; "
                "keep 127.0.0.1 and come through a tunnel (ssh -L), or a proxy that speaks TLS"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything, checked. `var` is the one directory that freshet writes to."""

    var: Path = Path("var")
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    join: JoinConfig = field(default_factory=JoinConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)

    @property
    def store_dir(self) -> Path:
        """The RocksDB of this model's checkpoints and versions."""
        return self.var / "models" / self.model.name / "store"

    @property
    def metrics_dir(self) -> Path:
        """JSON lines, one file per process."""
        return self.var / "metrics" / self.model.name

    @property
    def alarms_file(self) -> Path:
        """JSON lines, an alarm each, of every process."""
        return self.metrics_dir / "alarms.jsonl"

    @property
    def windows_dir(self) -> Path:
        """Parquet, a line per window and slice."""
        return self.metrics_dir / "windows"

    @property
    def fields_dir(self) -> Path:
        """Parquet, a line per window and field."""
        return self.metrics_dir / "fields"


SECRETS = frozenset(  # keys whose values nobody prints
    {"kafka.password", "score.tokens", "score.operator_tokens", "score.caller_token", "alarms.webhook",
     "dashboard.token"}
)

SECTIONS: dict[str, type[Any]] = {
    "kafka": KafkaConfig, "join": JoinConfig, "model": ModelConfig, "learn": LearnConfig,
    "snapshot": SnapshotConfig, "score": ScoreConfig, "metrics": MetricsConfig,
    "alarms": AlarmsConfig, "gate": GateConfig, "dashboard": DashboardConfig,
}


# What an architecture wants else than the defaults (measured, docs/lab.md); a value given anywhere comes before it.
ARCHITECTURE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ffm_stats": {
        "model.factors": 1, "model.hidden": (32,), "model.heads": 2, "model.init_scale": 0.02,
        "learn.row_rate": 0.03, "learn.first_order_rate": 0.005,
    },
}


@dataclass(frozen=True, slots=True)
class Source:
    """One place that settings come from. values: dotted key ("join.window_s") → raw value, text or typed."""

    origin: str
    values: Mapping[str, Any]


def keys() -> dict[str, Any]:
    """Every dotted key with its default."""
    listed: dict[str, Any] = {"var": Settings().var}
    for section, kind in SECTIONS.items():
        default = kind()
        listed.update({f"{section}.{f.name}": getattr(default, f.name) for f in fields(kind)})
    return listed


def value_of(settings: Settings, key: str) -> Any:
    """What a dotted key is set to."""
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found


def variable_name(key: str) -> str:
    """join.window_s → FRESHET_JOIN_WINDOW_S."""
    return "FRESHET_" + key.upper().replace(".", "_")


def from_environment(environ: Mapping[str, str]) -> Source:
    """The `FRESHET_…` variables. FRESHET_KAFKA is short for kafka.bootstrap, FRESHET_CONFIG names the TOML file."""
    names = {variable_name(key): key for key in keys()} | {"FRESHET_KAFKA": "kafka.bootstrap"}
    values = {}
    for name, text in environ.items():
        if not name.startswith("FRESHET_") or name == "FRESHET_CONFIG":
            continue
        if name not in names:
            raise ConfigError(f"variable {name}: no such setting{_nearest(name, names)}")
        values[names[name]] = text
    return Source("environment", values)


def from_mapping(origin: str, tables: Mapping[str, Any]) -> Source:
    """A parsed TOML file: tables of sections, flattened to dotted keys."""
    values: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            values.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            values[name] = value
    return Source(origin, values)


def build(*sources: Source) -> tuple[Settings, dict[str, str]]:
    """Settings from sources in rising order, and for each dotted key the origin of its value.

    Raises ConfigError for a key that does not exist (naming the nearest), a value of the wrong type or out of range.
    """
    known = keys()
    chosen: dict[str, tuple[Any, str]] = {key: (default, "default") for key, default in known.items()}
    for source in sources:
        for key, value in source.values.items():
            if key not in known:
                raise ConfigError(f"{source.origin}: no such setting: {key}{_nearest(key, known)}")
            chosen[key] = (value, source.origin)
    architecture = chosen["model.architecture"][0]
    for key, value in ARCHITECTURE_DEFAULTS.get(str(architecture), {}).items():
        if chosen[key][1] == "default":
            chosen[key] = (value, f"default of {architecture}")

    parts: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        taken = {
            f.name: _typed(f"{section}.{f.name}", *chosen[f"{section}.{f.name}"], hints[f.name]) for f in fields(kind)
        }
        parts[section] = kind(**taken)
    return Settings(var=Path(chosen["var"][0]), **parts), {key: origin for key, (_, origin) in chosen.items()}


def _nearest(wrong: str, right: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, list(right), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _typed(key: str, value: Any, origin: str, hint: Any) -> Any:
    """The value as its setting's type; text is read as that type."""
    try:
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            if value in choices:
                return value
            raise ValueError(f"one of {', '.join(map(str, choices))}{_nearest(str(value), map(str, choices))}")
        if typing.get_origin(hint) is tuple:
            parts = [part for part in value.replace("-", ",").split(",") if part] if isinstance(value, str) else value
            return tuple(int(part) for part in parts)
        if isinstance(hint, types.UnionType):
            raise TypeError(f"{key}: settings have one type")
        if hint is bool:
            if isinstance(value, bool):
                return value
            spelt = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            if str(value).lower() in spelt:
                return spelt[str(value).lower()]
            raise ValueError("true or false")
        if hint is int:
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError("a whole number")
            return int(value)
        if hint is float:
            if isinstance(value, bool):
                raise ValueError("a number")
            return float(value)
        return str(value)
    except ValueError as wrong:
        wanted = {int: "a whole number", float: "a number"}.get(hint, str(wrong))
        raise ConfigError(f"{key}={value!r} ({origin}): must be {wanted}") from wrong
