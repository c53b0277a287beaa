"""A store's report as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence

from ops.simulator.store import StoreReport


def text(report: StoreReport) -> str:
    """A few lines."""
    lines = [
        f"{report.impressions:,} impressions of {report.items:,} items in {report.seconds:.1f} s; "
        f"{report.clicks:,} clicks, {report.clicks_sent:,} sent"
        + (f", {report.clicks_unsent:,} fell due after the end" if report.clicks_unsent else ""),
        f"click rate on ranked slates {_rate(report.click_rate_ranked)}, "
        f"on random ones {_rate(report.click_rate_random)}",
    ]
    if report.visitors_missed:
        lines.append(f"{report.visitors_missed:,} visitors missed: the store could not keep up with its --rate")
    if report.scored_slates:
        lines += [
            f"{report.scored_slates:,} slates scored by {report.versions_served:,} versions, the newest "
            f"{report.newest_version}; waited {_ms(report.score_wait_ms['p50'])} (p50), "
            f"{_ms(report.score_wait_ms['p99'])} (p99)",
            f"AUC by third of the run, on {sum(report.random_rows_thirds):,} items of random slates: "
            f"served {_aucs(report.auc_served_thirds)}, an oracle would have {_aucs(report.auc_oracle_thirds)}",
        ]
    else:
        lines.append(
            "no slate was scored: all were shown in random order. "
            f"AUC of an oracle by third of the run: {_aucs(report.auc_oracle_thirds)}"
        )
    return "\n".join(lines)


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


def _aucs(values: Sequence[float | None]) -> str:
    return " ".join("–" if value is None else f"{value:.3f}" for value in values)
