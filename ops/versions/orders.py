"""Orders to the trainer, as a verb and the page give them: about a version, and to the gate."""

from __future__ import annotations

import time
from typing import Any, Literal

from ops.versions import control
from ops.versions.store import opened
from schemas.config import Settings
from schemas.control import Order, Then, What


def about_version(settings: Settings, what: What, number: int, then: Then | None, wait_s: float) -> dict[str, Any]:
    """Write an order and wait for what the trainer says. Raises SnapshotError where there is no such version, BrokerError."""
    with opened(settings, "version") as reader:
        version = reader.manifest(number)
    report, answer = control.ordered(settings, Order(
        what=what, model=settings.model.name, lineage=version.lineage, version=number, then=then,
        ordered_us=time.time_ns() // 1000,
    ), wait_s)
    return report | {"version": number, "then": then, "first": answer.get("first"), "lineage": answer.get("lineage")}


def about_version_text(report: dict[str, Any], wait_s: float) -> str:
    """What came of it."""
    if report["order"] == "rollback" and report["obeyed"]:
        return f"version {report['first']} has the weights of {report['version']}: a new lineage, {report['lineage'][:8]}"
    return control.order_text(f"{report['order']} {report['version']}", report, wait_s)


def to_gate(settings: Settings, what: Literal["hold", "release"], wait_s: float) -> dict[str, Any]:
    """Write an order and wait for what the trainer says. Raises BrokerError."""
    order = Order(what=what, model=settings.model.name, ordered_us=time.time_ns() // 1000)
    return control.ordered(settings, order, wait_s)[0]


def to_gate_text(report: dict[str, Any], wait_s: float) -> str:
    """What came of it."""
    return control.order_text(report["order"], report, wait_s)
