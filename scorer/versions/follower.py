"""Find, check and apply versions: keeps the engine that answers at the newest whole one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import structlog

from schemas.errors import SnapshotError
from schemas.snapshot import Manifest, Unpacked, chain
from scorer.answers.engine import Blueprint, Engine, load
from scorer.answers.version import Version
from scorer.metrics import Metrics

_log = structlog.get_logger("scorer")

DEFECT_PAUSE_S = 1.0
RETRY_S = 5.0  # a disk may recover; a version that stays broken costs one reading of the chain each time

Changed = Callable[[Manifest, Unpacked, bool], None]
Applied = Callable[[Version, Sequence[Mapping[str, Any]]], None]


class Source(Protocol):
    """Where versions come from: the store of this machine (scorer/versions/reader.py); later a Kafka topic too."""

    def poll(self) -> int | None: ...
    def numbers(self) -> Sequence[int]: ...
    def manifests(self) -> Mapping[int, Manifest]: ...
    def manifest(self, number: int) -> Manifest: ...
    def read(self, manifest: Manifest) -> Unpacked: ...


class Follower:
    """Applies every version in order, each onto its parent; loads afresh at the start and wherever that does not work.

    A broken version is skipped. What it held is missing, so nothing after it can be applied until the versions after it
    hold the whole table by themselves (one rotation); meanwhile the last good one answers. At the start that is the
    newest whole one. What could not be read is tried again every few seconds. `step` looks once; `look` does too, and
    outlives what goes wrong.
    """

    def __init__(
        self,
        source: Source,
        blueprint: Blueprint,
        poll_s: float,
        metrics: Metrics,
        now_us: Callable[[], int],
        changed: Changed = lambda manifest, content, whole: None,
        applied: Applied = lambda version, traces: None,
    ) -> None:
        """changed: told of each version taken over; whole: `engine` is a new one, and what it held is not in the old.
        applied: told, after that, of each taken over while another answered, with the examples it follows."""
        self.engine: Engine | None = None
        self._source = source
        self._blueprint = blueprint
        self._poll_s = poll_s
        self._metrics = metrics
        self._now_us = now_us
        self._changed = changed
        self._applied = applied
        self._seen: int | None = None
        self._broken: set[int] = set()          # versions that could not be read
        self._said: set[int] = set()            # those of them that the log has named
        self._refused: set[str] = set()         # lineages that do not fit this process's settings
        self._stuck = False
        self._tried_us = 0
        self._failing = False

    def step(self) -> bool:
        """Look once and take over all that is new. True if another version answers now.

        Raises SnapshotError only if the store cannot be read at all.
        """
        newest = self._source.poll()
        now_us = self._now_us()
        retry = self._stuck and not 0 <= now_us - self._tried_us < RETRY_S * 1e6
        if newest is None or (newest == self._seen and not retry):
            return False
        if retry:
            self._broken.clear()
            self._tried_us = now_us
        self._seen = newest
        before = self._serving()
        manifests = self._source.manifests()
        if not self._go_on(manifests, newest):
            self._load_afresh(manifests, newest)
        now = self._serving()
        stuck = now is None or now.number != newest
        if stuck and not self._stuck:
            _log.warning(
                "versions.waiting", newest=newest, serving=now.number if now else None,
                why="the versions after the last whole one do not hold the whole table yet, or do not fit",
            )
        if stuck and not self._stuck:
            self._tried_us = now_us
        self._stuck = stuck
        return now is not before

    def look(self) -> float:
        """Look once, say what went wrong. Returns the seconds until the next look."""
        try:
            self.step()
            if self._failing:
                _log.info("store.readable")
            self._failing = False
        except SnapshotError as unreadable:
            self._metrics.poll_errors.inc()
            if not self._failing:
                _log.error("store.unreadable", error=str(unreadable), serving=self._serving_number())
            self._failing = True
        except Exception:  # noqa: BLE001
            # A defect of ours. Answering from the last good version beats not answering, and the version's age,
            # which grows from now on, is what operators watch.
            self._metrics.poll_errors.inc()
            _log.exception("follower.defect", serving=self._serving_number())
            return DEFECT_PAUSE_S
        return self._poll_s

    def _go_on(self, manifests: Mapping[int, Manifest], newest: int) -> bool:
        """Apply all versions from the present one to `newest`, parent by parent. False where there is no such way, or
        loading the whole table is shorter."""
        engine = self.engine
        if engine is None or engine.version is None:
            return False
        way: list[Manifest] = []
        at: int | None = newest
        while at != engine.version.number:
            manifest = manifests.get(at) if at is not None and at > engine.version.number else None
            if manifest is None or at in self._broken or len(way) == manifest.rotation:
                return False
            if manifest.lineage != engine.version.lineage:
                return False
            way.append(manifest)
            at = manifest.parent
        for manifest in reversed(way):
            started = time.perf_counter()
            try:
                content = self._source.read(manifest)
                version = engine.apply(manifest, content)
            except SnapshotError as broken:
                self._skip(manifest.number, broken)
                return False
            self._took_over(version, manifest.rows, time.perf_counter() - started)
            self._changed(manifest, content, False)
            self._applied(version, _traces(manifest))
        return True

    def _load_afresh(self, manifests: Mapping[int, Manifest], newest: int) -> None:
        """A new engine from the newest whole table on the way back from `newest`, if that is later than the present."""
        now = self._serving()
        wanted: int | None = newest
        while wanted is not None:
            manifest = manifests.get(wanted)
            if manifest is None:
                wanted = max((number for number in self._source.numbers() if number < wanted), default=None)
                continue
            if now is not None and manifest.lineage == now.lineage and wanted <= now.number:
                return
            if not self._fits(manifest):
                return
            try:
                numbers = chain(manifests, wanted)
            except SnapshotError:  # too much of it is gone: the same holds for those before, unless a branch ends here
                numbers = []
            if numbers and not any(number in self._broken for number in numbers) and self._load(numbers):
                return
            wanted = manifest.parent

    def _load(self, numbers: Sequence[int]) -> bool:
        """Swap in a new engine made of these versions."""
        started = time.perf_counter()
        previous = self._serving()
        read: list[Manifest] = []
        content = Unpacked((), {}, {})

        def parts() -> Iterator[tuple[Manifest, Unpacked]]:
            nonlocal content
            for number in numbers:
                manifest = self._source.manifest(number)
                read.append(manifest)
                content = self._source.read(manifest)
                yield manifest, content

        try:
            engine = load(self._blueprint, self._now_us, parts())
        except SnapshotError as broken:
            self._skip(numbers[max(len(read) - 1, 0)], broken)
            return False
        self.engine = engine
        version = engine.version
        assert version is not None
        rows, took_s = sum(manifest.rows for manifest in read), time.perf_counter() - started
        self._metrics.loads.inc()
        self._took_over(version, rows, took_s)
        self._changed(read[-1], content, True)
        if previous is not None and previous.lineage == version.lineage:
            late = [trace for manifest in read if manifest.number > previous.number for trace in _traces(manifest)]
            self._applied(version, late)
        _log.info(
            "table.loaded", version=numbers[-1], lineage=read[-1].lineage[:8], versions=len(numbers), rows=rows,
            ms=round(1000 * took_s, 1),
        )
        return True

    def _fits(self, manifest: Manifest) -> bool:
        """False, said once for each lineage, if this process's settings are not those of the trainer."""
        if manifest.lineage in self._refused:
            return False
        try:
            self._blueprint.check(manifest)
        except SnapshotError as unfit:
            self._refused.add(manifest.lineage)
            self._metrics.versions_skipped.labels("unfit").inc()
            _log.error("lineage.refused", error=str(unfit), serving=self._serving_number())
            return False
        return True

    def _took_over(self, version: Version, rows: int, took_s: float) -> None:
        self._metrics.versions_applied.inc()
        self._metrics.rows_applied.inc(rows)
        self._metrics.apply_seconds.observe(took_s)
        self._metrics.version.set(version.number)
        self._metrics.version_created.set(version.created_us / 1e6)

    def _skip(self, number: int, why: SnapshotError) -> None:
        """Remember a version that cannot be used; say so once."""
        self._broken.add(number)
        if number in self._said:
            return
        self._said.add(number)
        self._metrics.versions_skipped.labels("broken").inc()
        _log.error("version.skipped", version=number, error=str(why), serving=self._serving_number())

    def _serving(self) -> Version | None:
        return None if self.engine is None else self.engine.version

    def _serving_number(self) -> int | None:
        version = self._serving()
        return None if version is None else version.number


def _traces(manifest: Manifest) -> list[dict[str, Any]]:
    """The examples that a version follows, with the time when it was published."""
    return [{"published_us": manifest.created_us, **trace} for trace in manifest.traces]
