"""Every error that freshet raises on purpose. The type says whose fault it is and whether trying again helps."""

from __future__ import annotations


class FreshetError(Exception):
    """Root of them all."""


class ConfigError(FreshetError):
    """A setting is wrong. The operator mends it; trying again does not help."""


class SchemaError(FreshetError):
    """A field schema is wrong, or two sides do not agree on one."""


class ShapeError(FreshetError):
    """A tensor has not the shape that the function takes. A programming error."""


class BadEvent(FreshetError):
    """An event cannot be used. The producer mends it; `reason` is a short stable word for counting.

    The text says what was wrong with which part, for a person.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SnapshotError(FreshetError):
    """A snapshot is broken, missing, or does not fit this process. The last good one goes on."""


class BrokerError(FreshetError):
    """Kafka cannot be reached, or a topic is not as it must be. Trying again may help."""


class RequestError(FreshetError):
    """A scoring request cannot be answered. The client mends it; the text says what to change."""
