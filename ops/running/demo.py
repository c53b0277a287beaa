"""The loop for ninety seconds, judged: every event accounted for, the model near the oracle, a click served in time.

The processes are those of `freshet run`. Only the app store runs in here, since it alone knows the truth.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ops.kafka.topics import wait_for_start
from ops.machine.ports import reached
from ops.settings import Loaded
from ops.simulator.live import GrpcRanker, KafkaLog
from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from ops.simulator.store import AppStore, StoreReport, WallClock
from ops.watching.freshness import parts_ms, whole_way_ms
from ops.watching.journals import last
from schemas.config import Settings
from schemas.errors import FreshetError
from schemas.journal import read
from scorer.client import ScorerClient
from scorer.client.access import access_of

STARTUP_S = 60.0            # a loop that has not served by then is broken
SETTLE_S = 30.0             # for what is under way when the store closes, beyond the join's window
LEAD_WANTED = 0.6           # of the oracle's lead over a coin, in the last third
SERVED_WANTED_MS = 5000.0   # click → first score that used it, p99
SPOILED = (b"\x00garbage", b'{"impression_id": "torn', b'{"impression_id": "x", "items": [], "time": "noon"}')


class DemoFailed(FreshetError):
    """The loop did not start, or did not come to rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """What the loop did. Times in ms from the click's event time; parts: joined, learnt, published, served."""

    seconds: float
    impressions: int
    items: int
    clicks: int
    spoiled_events_sent: int
    dead_letters: int
    examples_learnt: int
    reconciled: bool
    ends: dict[str, int]
    versions_published: int
    versions_served: int
    auc_served_thirds: list[float | None]
    auc_oracle_thirds: list[float | None]
    lead_of_oracle_thirds: list[float | None]
    click_to_served_ms: dict[str, float | None]
    parts_ms: dict[str, dict[str, float | None]]
    traced_clicks: int
    failures: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def demo(
    loaded: Loaded, seconds: float, rate: float, seed: int, say: Callable[[str], None], progress: Callable[[int], None]
) -> DemoReport:
    """Start the loop, let the store trade, wait until all is learnt, judge. seconds: of the whole. Raises DemoFailed."""
    settings = loaded.settings
    began = time.monotonic()
    with _loop(loaded):
        # 1. The loop serves its first scores.
        wait_for_start(settings, ["events", "examples"])
        with ScorerClient(reached(settings.score.host, settings.score.port), access_of(settings.score)) as client:
            client.wait_ready(STARTUP_S)
        say(f"the loop serves after {time.monotonic() - began:.1f} s")

        # 2. The store trades; a few events are spoiled on purpose.
        trading_s = seconds - (time.monotonic() - began) - settings.join.window_s - settings.join.lateness_s - 5
        if trading_s < 10:
            raise DemoFailed(f"--seconds {seconds:.0f} leaves {trading_s:.0f} s for the store: give it more")
        store = _trade(settings, trading_s, rate, seed, progress)

        # 3. What is under way comes to its end.
        tallies = _settle(settings, store)
    say("everything has ended")
    return _judge(settings, store, tallies, time.monotonic() - began)


@contextmanager
def _loop(loaded: Loaded) -> Iterator[None]:
    """`freshet run` without its app store."""
    settings = loaded.settings
    settings.var.mkdir(parents=True, exist_ok=True)
    log = settings.var / "demo.log"
    with log.open("wb") as out:
        crew = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "run", "--without", "appstore"],
            env=loaded.child_environment(os.environ), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        )
        try:
            _refuse_dead(crew, log)
            yield
        finally:
            crew.send_signal(signal.SIGTERM)
            crew.wait(60)


def _refuse_dead(crew: subprocess.Popen[bytes], log: Path) -> None:
    """A port that is taken ends the loop at once."""
    try:
        crew.wait(1.5)
    except subprocess.TimeoutExpired:
        return
    raise DemoFailed(f"the loop did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _trade(
    settings: Settings, seconds: float, rate: float, seed: int, progress: Callable[[int], None]
) -> StoreReport:
    window_s = settings.join.window_s
    options = StoreOptions(
        seed=seed, late_after_s=window_s, delay_most_s=0.9 * window_s, delay_median_s=min(1.5, 0.15 * window_s)
    )
    log = KafkaLog(settings)
    for place, spoiled in enumerate(SPOILED):
        log.send(f"spoiled{place}", spoiled)
    store = AppStore(
        Simulator(options, time.time_ns() // 1000), WallClock(threading.Event()), log,
        GrpcRanker(reached(settings.score.host, settings.score.port), settings.model.name, access_of(settings.score)),
        rate=rate, seconds=seconds, progress=progress,
    )
    return store.run()


def _settle(settings: Settings, store: StoreReport) -> Mapping[str, int]:
    """Wait until every event has met its end; the trainer's tallies then, or at the end of patience."""
    deadline = time.monotonic() + settings.join.window_s + settings.join.lateness_s + SETTLE_S
    tallies: Mapping[str, int] = {}
    while time.monotonic() < deadline:
        status = last(settings, "trainer", "trainer.status")
        tallies = status["tallies"] if status else {}
        if _accounts(tallies, store):
            break
        time.sleep(0.5)
    return tallies


def _accounts(tallies: Mapping[str, int], store: StoreReport) -> bool:
    """Every impression, click and spoiled event that was sent has exactly one counted end."""
    def count(*names: str) -> int:
        return sum(tallies.get(name, 0) for name in names)

    return (
        count("impressions", "late_impression", "duplicate_impression") == store.impressions
        and count("positives", "late_action", "duplicate_action", "unmatched_action") == store.clicks_sent
        and count("dead_letter") == len(SPOILED)
    )


def _judge(settings: Settings, store: StoreReport, tallies: Mapping[str, int], seconds: float) -> DemoReport:
    status = last(settings, "trainer", "trainer.status") or {}
    rows = [row for row in read(settings.metrics_dir / "freshness.jsonl") if row.get("served_us")]
    parts, total = parts_ms(rows), whole_way_ms(rows)
    leads = [
        None if served is None or oracle is None or oracle <= 0.5 else (served - 0.5) / (oracle - 0.5)
        for served, oracle in zip(store.auc_served_thirds, store.auc_oracle_thirds, strict=True)
    ]
    reconciled = _accounts(tallies, store)

    failures = []
    if not reconciled:
        failures.append(
            f"counts do not reconcile: {store.impressions} impressions, {store.clicks_sent} clicks and {len(SPOILED)} "
            f"spoiled events were sent, their ends are {dict(tallies)}"
        )
    first, final = leads[0], leads[-1]
    if final is None or final < LEAD_WANTED:
        failures.append(f"the last third has {_share(final)} of the oracle's lead over 0.5; {LEAD_WANTED:.0%} is wanted")
    if final is not None and first is not None and final < first:
        failures.append(f"the last third ({_share(final)} of the oracle's lead) is worse than the first ({_share(first)})")
    p99 = total["p99"]
    if settings.join.mode == "eager" and (p99 is None or p99 > SERVED_WANTED_MS):
        failures.append(f"click to served p99 is {p99} ms; at most {SERVED_WANTED_MS:.0f} ms is wanted")
    return DemoReport(
        seconds=seconds, impressions=store.impressions, items=store.items, clicks=store.clicks_sent,
        spoiled_events_sent=len(SPOILED), dead_letters=tallies.get("dead_letter", 0),
        examples_learnt=tallies.get("examples", 0), reconciled=reconciled, ends=dict(tallies),
        versions_published=int(status.get("newest_version") or 0), versions_served=store.versions_served,
        auc_served_thirds=store.auc_served_thirds, auc_oracle_thirds=store.auc_oracle_thirds,
        lead_of_oracle_thirds=leads, click_to_served_ms=total, parts_ms=parts, traced_clicks=len(rows),
        failures=failures,
    )


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def table(report: DemoReport) -> str:
    """What a newcomer reads."""
    def thirds(values: list[float | None], shape: str) -> str:
        return "   ".join("   –" if value is None else format(value, shape) for value in values)

    lines = [
        ("sent", f"{report.impressions:,} slates with {report.items:,} apps, {report.clicks:,} clicks, "
                 f"{report.spoiled_events_sent} spoiled events"),
        ("learnt", f"{report.examples_learnt:,} examples, each once; {report.dead_letters} dead letters; "
                   + ("every event is accounted for" if report.reconciled else "the counts do NOT add up")),
        ("versions", f"{report.versions_published:,} published, {report.versions_served:,} of them answered a request"),
        ("AUC of served scores", thirds(report.auc_served_thirds, ".3f") + "   by third of the run, random slates"),
        ("AUC of an oracle", thirds(report.auc_oracle_thirds, ".3f") + "   it knows the true probabilities"),
        ("share of its lead", thirds(report.lead_of_oracle_thirds, "5.0%") + "   a coin has 0 %"),
        ("click → served", f"p50 {_ms(report.click_to_served_ms['p50'])}, p99 {_ms(report.click_to_served_ms['p99'])} "
                           f"(of {report.traced_clicks:,} clicks followed)"),
    ]
    lines += [(f"   {name}", f"p50 {_ms(part['p50'])}, p99 {_ms(part['p99'])}") for name, part in report.parts_ms.items()]
    wide = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{wide}}  {value}" for name, value in lines)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms"
