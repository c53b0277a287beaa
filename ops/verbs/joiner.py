"""freshet joiner."""

from __future__ import annotations

from schemas.config import Settings


def joiner(settings: Settings) -> None:
    """Join impressions and clicks (topic `events`) into labelled examples (topic `examples`), until told to stop."""
    from ops.kafka.topics import hold_to_topics, wait_for_start
    from stream_trainer.faust_driver import crash
    from stream_trainer.joiner import run

    wait_for_start(settings, ["events", "examples", "dead-letters"])
    hold_to_topics(settings, "joiner", ["events"], crash)
    run(settings)
