"""What the scorer counts, as OpenMetrics: `freshet_scorer_<what>_<unit>`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
        self.poll_errors = Counter("freshet_scorer_poll_errors", "Looks at the store that failed", registry=own)

    def totals(self) -> dict[str, int]:
        """Each counter's sum over its labels, by its name without `freshet_scorer_`."""
        found: dict[str, int] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    name = sample.name.removeprefix("freshet_scorer_").removesuffix("_total")
                    found[name] = found.get(name, 0) + int(sample.value)
        return found
