"""What the scorer counts, as OpenMetrics: `freshet_scorer_<what>_<unit>`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from scorer.answers.version import Version

PREFIX = "freshet_scorer_"
_SUMMED = ("_total", "_bucket", "_sum", "_count")  # ends of the names of samples that add up over processes
_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """One set per server, in a registry of its own. A version is a gauge's value, never a label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter(
            "freshet_scorer_requests", "Requests answered, by gRPC status", ["status"], registry=own
        )
        self.items = Counter("freshet_scorer_items_scored", "Items scored", registry=own)
        self.request_seconds = Histogram(
            "freshet_scorer_request_duration_seconds", "Time in the servicer", buckets=_SECONDS, registry=own
        )
        self.unknown_fields = Counter(
            "freshet_scorer_unknown_fields", "Columns ignored because the schema does not know them", registry=own
        )
        self.version = Gauge("freshet_scorer_version", "Number of the version that answers", registry=own)
        self.version_created = Gauge(
            "freshet_scorer_version_created_timestamp_seconds", "When it was published", registry=own
        )
        self.versions_applied = Counter("freshet_scorer_versions_applied", "Versions applied", registry=own)
        self.versions_skipped = Counter(
            "freshet_scorer_versions_skipped", "Versions refused, by what was wrong", ["reason"], registry=own
        )
        for reason in ("broken", "unfit"):
            self.versions_skipped.labels(reason)  # 0 is a figure too
        self.requests.labels("OK")
        self.loads = Counter("freshet_scorer_loads", "Times the whole table was loaded afresh", registry=own)
        self.rows_applied = Counter("freshet_scorer_rows_applied", "Table rows written", registry=own)
        self.apply_seconds = Histogram(
            "freshet_scorer_apply_duration_seconds", "Time to read and apply one version",
            buckets=_SECONDS, registry=own,
        )
        self.workers = Gauge("freshet_scorer_workers", "Processes that answer", registry=own)
        self.poll_errors = Counter("freshet_scorer_poll_errors", "Looks at the store that failed", registry=own)

    def show(self, version: Version | None, workers: int) -> None:
        """Set the gauges."""
        self.workers.set(workers)
        if version is not None:
            self.version.set(version.number)
            self.version_created.set(version.created_us / 1e6)

    def counts(self) -> dict[str, float]:
        """All that adds up over processes: "requests status=OK" → 7, "apply_duration_seconds_bucket le=0.01" → 3, …"""
        found = {}
        for sample in (sample for family in self.registry.collect() for sample in family.samples):
            if sample.name.endswith(_SUMMED):
                name = sample.name.removeprefix(PREFIX).removesuffix("_total")
                found[" ".join([name, *(f"{label}={value}" for label, value in sample.labels.items())])] = sample.value
        return found

    def totals(self) -> dict[str, int]:
        """Each counter's sum over its labels, by its name without `freshet_scorer_`."""
        return totals_of(self.counts())

    def families(self, counts: Mapping[str, float]) -> Iterator[Metric]:
        """What Prometheus reads: these counts, of all processes together, and the gauges of this one."""
        for family in self.registry.collect():
            if family.type == "gauge":
                yield family
                continue
            found = Metric(family.name, family.documentation, family.type)
            ends = {"": "_total"} if family.type == "counter" else {end: end for end in _SUMMED[1:]}
            names = {family.name.removeprefix(PREFIX) + short: family.name + end for short, end in ends.items()}
            for key, value in counts.items():
                name, *labels = key.split(" ")
                if name in names:
                    found.add_sample(names[name], dict(label.split("=", 1) for label in labels), value)
            yield found


def by_model(families: Mapping[str, Iterable[Metric]]) -> Iterator[Metric]:
    """Those of several models as one page may have them: each family once, its samples labelled with their model."""
    found: dict[str, Metric] = {}
    for model, ones in families.items():
        for family in ones:
            whole = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {"model": model, **sample.labels}, sample.value)
    yield from found.values()


def totals_of(counts: Mapping[str, float]) -> dict[str, int]:
    """Of `counts`: each counter's sum over its labels, by its name."""
    found: dict[str, int] = {}
    for key, value in counts.items():
        name = key.split(" ", 1)[0]
        if not name.endswith(_SUMMED):
            found[name] = found.get(name, 0) + int(value)
    return found
