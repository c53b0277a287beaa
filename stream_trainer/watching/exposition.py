"""What a joiner and a trainer say of themselves, as OpenMetrics on 127.0.0.1: `freshet_<process>_<what>_<unit>`.

What is shown is the process's newest status, which stands there anyway: a scrape reads it on a thread of its own, and neither
the event loop nor the learner hears of it. A version is a gauge's value, never a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from stream_trainer.watching.alarms import Alarm

HOST = "127.0.0.1"
WINDOW = ("auc", "log_loss", "normalized_entropy", "calibration", "click_rate")    # of the newest window that is complete

Figures = Mapping[str, Any]

log = structlog.get_logger()


class Exposition:
    """An HTTP server with /metrics, on threads of its own. families: called at each scrape, by any of them."""

    def __init__(self, setting: str, port: int, families: Callable[[], Iterable[Metric]]) -> None:
        """setting: its name, for people. port: 0 = any free one, -1 = none. One that is taken is said, and there is none."""
        self.port: int | None = None
        self._server: Any = None
        if port < 0:
            return
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(families))
        try:
            self._server, _ = start_http_server(port, HOST, registry)
        except OSError as taken:
            log.warning("metrics.no_port", setting=setting, port=port, error=taken.strerror,
                        does="goes on without; end what listens there, or set another port")
            return
        self.port = int(self._server.server_address[1])
        log.info("metrics.listening", host=HOST, port=self.port)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Collector:
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


_JOINER_COUNTS = {     # metric → count of joiner.status, and what it is
    "impressions": ("impressions", "Slates that came"),
    "actions": ("actions", "Actions that came"),
    "examples": ("examples", "Examples made"),
    "suspect_items": ("suspect", "Items not learnt, since labels had stopped"),
    "dead_letters": ("dead_letter", "Events that are unusable"),
    "late_actions": ("late_action", "Actions that came after their window"),
    "unmatched_actions": ("unmatched_action", "Actions without an impression"),
    "misplaced_records": ("misplaced", "Records in another partition than their key's, of the sample looked at"),
    "rejoined_impressions": ("anew", "Slates that were published anew"),
}
_JOINER_SHARES = {     # of the last minute
    "dead_letter_ratio": ("dead_letter_share", "Dead letters, of events"),
    "late_ratio": ("late_share", "Late or unmatched ones, of actions"),
    "join_ratio": ("join_rate", "Those that became a label, of actions"),
    "label_ratio": ("label_rate", "Labels, of examples"),
}
_TRAINER_COUNTS = {
    "examples_learnt": ("examples", "Examples learnt"),
    "positives_learnt": ("positives", "Of them, those with a label"),
    "suspect_items": ("suspect", "Items not learnt, since labels had stopped"),
    "dead_letters": ("dead_letter", "Events that are unusable, as the examples' ends say"),
}
_TRAINER_SINCE_START = {
    "examples_dropped": ("dropped", "Examples that had been learnt before"),
    "records_refused": ("gaps", "Records before which others are missing"),
    "idle_seconds": ("idle_s", "Time that the learner waited for examples"),
    "windows_lost": ("windows_lost", "Windows that could not be written"),
}


def of_joiner(figures: Figures | None, alarms: Iterable[Alarm]) -> Iterator[Metric]:
    """figures: joiner.status; None = none yet."""
    name = "freshet_joiner_"
    yield from _alarms(name, alarms)
    if figures is None:
        return
    for end, (of, text) in _JOINER_COUNTS.items():
        yield CounterMetricFamily(name + end, text, figures["counts"].get(of, 0))
    for end, (of, text) in _JOINER_SHARES.items():
        yield _gauge(name + end, text, figures["rates"][of])
    yield _lag(name, figures)
    yield _gauge(name + "open_impressions", "Slates that wait for their labels", figures["open"])
    yield _gauge(name + "event_age_seconds", "Wall clock less event time, where it is furthest behind", figures["event_age_s"])
    yield _gauge(name + "labels_stopped", "Partitions whose labels have stopped", len(figures["labels"]["stopped"]))


def of_trainer(figures: Figures | None, window: Figures | None, alarms: Iterable[Alarm], now_us: int) -> Iterator[Metric]:
    """figures: trainer.status; window: the newest window's line; None = none yet. now_us: wall clock."""
    name = "freshet_trainer_"
    yield from _alarms(name, alarms)
    if window is not None:
        for score, said in (("", "what the model said before it learnt them"), ("served_", "what was served")):
            for of in WINDOW:
                yield _gauge(f"{name}window_{score}{of}", f"Of {said}, in the newest window", window.get(score + of))
        yield _gauge(name + "window_last_row", "The last example of that window", window["last_row"])
    if figures is None:
        return
    for end, (of, text) in _TRAINER_COUNTS.items():
        yield CounterMetricFamily(name + end, text, figures["tallies"].get(of, 0))
    for end, (of, text) in _TRAINER_SINCE_START.items():
        yield CounterMetricFamily(name + end, text, figures[of])
    yield _lag(name, figures)
    yield _gauge(name + "newest_version", "Number of the newest version", figures["newest_version"])
    for end, of, text in (
        ("version_age_seconds", "newest_version_us", "Since the newest version was published"),
        ("example_age_seconds", "newest_joined_us", "Since the newest learnt example was joined"),
    ):
        yield _gauge(name + end, text, max(now_us - figures[of], 0) / 1e6 if figures[of] else None)
    yield _gauge(name + "learning_rate_factor", "What the guard has left of the learning rates", figures["rate_factor"])
    yield _gauge(name + "gate_held", "1 while versions are held back", float(bool((figures.get("gate") or {}).get("held"))))
    freshness = GaugeMetricFamily(
        name + "click_to_learnt_seconds", "From a click's event time until it was learnt, of the newest clicks followed",
        labels=["quantile"],
    )
    for quantile, seconds in figures["click_to_learnt_s"].items():
        freshness.add_metric([quantile], seconds)
    yield freshness


def _alarms(name: str, alarms: Iterable[Alarm]) -> Iterator[Metric]:
    family = GaugeMetricFamily(name + "alarms_open", "1 for each alarm that is raised and not over", labels=["what"])
    for alarm in alarms:
        family.add_metric([alarm.what], 1)
    yield family


def _lag(name: str, figures: Figures) -> Metric:
    family = GaugeMetricFamily(name + "lag_records", "Records that wait to be read", labels=["partition"])
    for partition, records in figures["lag"].items():
        family.add_metric([partition], records)
    return family


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """A figure that does not exist is NaN."""
    return GaugeMetricFamily(name, text, math.nan if value is None else value)
