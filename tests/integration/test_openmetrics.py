"""What joiner and trainer say of themselves over HTTP, and the alarms that they raise, with real Kafka."""

from __future__ import annotations

import math
import socket
import urllib.request
from collections.abc import Mapping

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ops.kafka.topics import ensure_topics
from ops.watching.journals import last
from schemas.config import Settings, Source, build
from schemas.events import parse
from schemas.journal import read
from tests.integration.test_exactly_once import running
from tests.integration.test_suspect import BACK, LAST, send, stream
from tests.kit.logs import at, tick
from tests.kit.processes import Process, wait_until

pytestmark = pytest.mark.integration


def figures(settings: Settings, process: str) -> Mapping[str, float]:
    """Name and labels → value, as Prometheus would read them now; nothing before the process has said its port."""
    status = last(settings, process, f"{process}.status")
    if not status or not status["metrics_port"]:
        return {}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{status['metrics_port']}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        text = answer.read().decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }


def said(settings: Settings) -> list[tuple[str, str, str]]:
    return [(row["process"], row["what"], row["state"]) for row in read(settings.alarms_file)]


def test_a_label_stream_that_stops_is_seen_said_and_over(broker: str, prefix: str, tmp_path) -> None:
    """Labels stop, the joiner says so in alarms.jsonl and over HTTP; they come back, and it is over, with how much was suspect.
    Joiner and trainer show what their status shows; a port that is taken ends neither."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings, _ = build(Source("test", {
            "var": str(tmp_path / "var"), "kafka.bootstrap": broker, "kafka.prefix": prefix,
            "model.bits": 12, "model.hidden": "8",
            "learn.batch_wait_s": 0.05, "join.window_s": 2.0, "join.commit_every_s": 0.2, "join.suspect_labels": 15.0,
            "metrics.window_rows": 400, "metrics.joiner_port": 0, "metrics.trainer_port": 0,
        }))
        log, _ = stream()
        back = next(place for place, event in enumerate(log) if parse(event).time_us >= at(BACK))
        ensure_topics(settings)
        with running(settings) as crew:
            send(settings, [tick(0, hold=True), *log[:back]])       # no ticks of the joiner's own while it waits
            wait_until(lambda: ("joiner", "labels.stopped", "raised") in said(settings), 60, "the alarm")
            shown = figures(settings, "joiner")
            assert shown["freshet_joiner_labels_stopped"] == 1
            assert shown["freshet_joiner_alarms_open labels.stopped"] == 1
            send(settings, [*log[back:], tick(LAST + 5, end=True)])
            wait_until(lambda: ("joiner", "labels.stopped", "over") in said(settings), 60, "its end")
            items = 2 * len([event for event in log if b'"items"' in event])

            def all_learnt() -> bool:
                now = figures(settings, "trainer")
                learnt = now["freshet_trainer_examples_learnt_total"] + now["freshet_trainer_suspect_items_total"]
                return learnt == items and now["freshet_trainer_lag_records 0"] == 0

            wait_until(all_learnt, 60, "learning")
            joiner = figures(settings, "joiner")
            suspect = joiner["freshet_joiner_suspect_items_total"]
            trainer, status = figures(settings, "trainer"), last(settings, "trainer", "trainer.status")
            assert status is not None
            assert joiner["freshet_joiner_impressions_total"] == items / 2
            assert trainer["freshet_trainer_suspect_items_total"] == suspect
            assert joiner["freshet_joiner_lag_records 0"] == 0
            assert trainer["freshet_trainer_examples_learnt_total"] == status["examples_learnt"]
            assert trainer["freshet_trainer_newest_version"] > 0
            assert 0 < trainer["freshet_trainer_window_log_loss"] < 2
            assert not math.isnan(trainer["freshet_trainer_click_to_learnt_seconds 0.5"])
            over = [row for row in read(settings.alarms_file) if row["what"] == "labels.stopped"][-1]
            assert f"{suspect:,.0f} items were marked suspect" in over["text"]

            crew["joiner"].stop()
            own, _ = build(Source("test", {
                "var": str(tmp_path / "var"), "kafka.bootstrap": broker, "kafka.prefix": prefix, "model.bits": 12,
                "model.hidden": "8", "join.window_s": 2.0, "metrics.joiner_port": taken.getsockname()[1],
            }))
            again = Process(own, "joiner")
            try:
                wait_until(lambda: "metrics.no_port" in again.tail(200), 30, "that the port is taken")
                wait_until(lambda: "joiner.assigned" in again.tail(200), 30, "the joiner all the same")
            finally:
                again.stop()
