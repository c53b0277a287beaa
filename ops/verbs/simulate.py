"""freshet simulate."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from schemas.config import Settings

OFFLINE_START_US = 1_767_225_600_000_000  # 2026-01-01: when a store opens that no clock drives


def simulate(
    settings: Settings,
    *,
    rate: Annotated[float, typer.Option(help="Slates a second.")] = 50.0,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds of event time; 0 = until Ctrl-C.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same store.")] = 1,
    day_s: Annotated[float, typer.Option(help="Seconds in a day of the store.")] = 240.0,
    slate: Annotated[int, typer.Option(help="Items shown.")] = 20,
    candidates: Annotated[int, typer.Option(min=0, help="Apps to choose them from; 0 = as many as are shown.")] = 0,
    apps: Annotated[int, typer.Option(help="Apps alive at any moment.")] = 200,
    drift: Annotated[str, typer.Option(
        metavar="NAME[@FROM[-UNTIL]]", help="Plant a change so many seconds after the start: docs/bench-drift.md names them."
    )] = "",
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each event as a line too: what `freshet replay` reads.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="No scorer and no Kafka: events for --record, as fast as possible.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """An app store whose click probabilities are known: asks the scorer, shows slates, clicks, and sends the events.

    Users, apps, tastes and luck come from the seed. One slate in ten is shown in random order; on these it reports the
    AUC of the served scores next to an oracle's, which knows the truth. Without a scorer every order is random.
    """
    from ops.kafka.topics import wait_for_start
    from ops.machine.ports import reached
    from ops.simulator.drifts import planted
    from ops.simulator.live import GrpcRanker, KafkaLog, Record
    from ops.simulator.options import StoreOptions
    from ops.simulator.report import text
    from ops.simulator.slates import Simulator
    from ops.simulator.store import AppStore, VirtualClock, WallClock
    from ops.terminal.console import progress
    from schemas.errors import ConfigError
    from scorer.client.access import access_of

    options = StoreOptions(
        seed=seed, apps=apps, day_s=day_s, slate=slate, candidates=candidates or slate,
        late_after_s=settings.join.window_s, delay_most_s=0.9 * settings.join.window_s,
        delay_median_s=min(1.5, 0.15 * settings.join.window_s),
    )
    if offline and not seconds:
        raise ConfigError("--offline needs --seconds: without a clock it would never end")
    stop = threading.Event()
    total = round(seconds * rate) or None

    def opened(start_us: int) -> Simulator:
        simulator = Simulator(options, start_us)
        if drift:
            simulator.plant(planted(drift, options, start_us))
        return simulator

    if drift:
        planted(drift, options, 0)       # what is wrong with it is said before anything is waited for
    if offline:
        _at_signal(stop.set)
        with progress("simulate", total, "slates") as bar:
            store = AppStore(
                opened(OFFLINE_START_US), VirtualClock(OFFLINE_START_US), Record(record),
                rate=rate, seconds=seconds, stop=stop, progress=bar.advance,
            )
            report = store.run()
    else:
        _at_signal(lambda: sys.exit(0))  # nothing was sent yet, so there is nothing to end cleanly
        wait_for_start(settings, ["events"])
        ranker = GrpcRanker(reached(settings.score.host, settings.score.port), settings.model.name, access_of(settings.score))
        log = Record(record, KafkaLog(settings))
        _at_signal(stop.set)
        with progress("simulate", total, "slates") as bar:
            store = AppStore(
                opened(time.time_ns() // 1000), WallClock(stop), log, ranker,
                rate=rate, seconds=seconds, stop=stop, progress=bar.advance,
            )
            report = store.run()
        ranker.close()
    print(json.dumps(report.as_dict()) if as_json else text(report))


def _at_signal(do: Callable[[], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: do())
