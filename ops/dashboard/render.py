"""The page's parts as HTML, made of values. All text that came from outside is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ops.dashboard.chart import Line, figure
from ops.dashboard.data import Board, Version, Window, clock, span
from ops.events.dead_letters import Letter, readable
from ops.terminal.tables import FIGURES
from scorer.client.calls import ItemExplained, Scored

NAMES = {"": "model", "served_": "served", "reference_": "frozen reference"}
LOOKS = {"": "model", "served_": "served", "reference_": "reference"}
FIELD_FIGURES = {"missing_share": "share missing", "unseen_share": "share never seen", "psi": "stability index"}
LETTER_CHARACTERS = 400
PAIRS = 5


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are HTML. caption: what it is, as text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """Its caption is for those who cannot see what stands above it."""
        heads = "".join(f'<th scope="col">{cell}</th>' for cell in self.head)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in self.rows)
        return (
            f'<table><caption class="unseen">{escape(self.caption)}</caption><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )

    def region(self) -> str:
        """What is wider than its place is scrolled, by keyboard too. For an answer, which stays: what is replaced while
        somebody reads needs a region that is not (`panels`)."""
        return f'<div class="scroll" role="region" aria-label="{escape(self.caption)}" tabindex="0">{self.html()}</div>'


def processes(board: Board) -> str:
    """A line per part of the loop, those that are down in words of their own."""
    lines = "".join(
        f'<li class="{one.state}"><b>{escape(one.name)}</b> <span class="state">{one.state}</span> {escape(one.text)}</li>'
        for one in board.processes
    )
    return f'<ul class="processes">{lines}</ul>' + "".join(f'<p class="trouble">{escape(text)}</p>' for text in board.troubles)


def spoken(board: Board) -> str:
    """What a screen reader says by itself: only what changes seldom."""
    down = [one.name for one in board.processes if one.state != "up"]
    said = f"not up: {', '.join(down)}" if down else "all parts are up"
    return f"{said}; {_count(len(board.alarms_open), 'alarm')} open"


# --- is it right ---

def right(board: Board) -> str:
    """AUC, calibration and normalised entropy, window by window."""
    if not board.windows:
        learnt = board.speed.learnt if board.speed is not None else 0
        return (
            f"<p>No window yet: there are figures once {board.window_rows:,} examples have been judged "
            f"(metrics.window_rows); {learnt:,} have been learnt.</p>"
        )
    newest = board.windows[-1]
    places = [f"{clock(one.time_us, board.time_us)} · to row {one.last_row:,}" for one in board.windows]
    said = [
        _chart("auc", "AUC", board.windows, places, None, 0.02),
        _chart("calibration", "Calibration (1 = as many clicks as said)", board.windows, places, 1.0, 0.1),
        _chart("normalized_entropy", "Normalised entropy (1 = no better than the base rate)", board.windows, places, 1.0, 0.02),
    ]
    return _one_class(newest) + "".join(said)


def _one_class(newest: Window) -> str:
    if newest.figures.get("auc") is not None:
        return ""
    only = "no click" if newest.clicks == 0 else "clicks only" if newest.clicks == newest.rows else "one class only"
    return f'<p class="trouble">The newest window has {only} in {newest.rows:,} examples: it has no AUC.</p>'


def _chart(
    name: str, title: str, windows: Sequence[Window], places: Sequence[str], level: float | None, least: float
) -> str:
    lines = [
        Line(NAMES[score], LOOKS[score], [one.figures.get(score + name) for one in windows])
        for score in NAMES if any(score + name in one.figures for one in windows)
    ]
    return figure(title, summary(lines), lines, places, level, least)


def summary(lines: Sequence[Line]) -> str:
    """A chart in a sentence: what each line is now, and between what it was."""
    said = []
    for line in lines:
        known = [value for value in line.values if value is not None]
        if known:
            now = line.values[-1]
            said.append(f"{line.name} {'none' if now is None else f'{now:.4f}'}, {min(known):.4f} to {max(known):.4f}")
    return "; ".join(said) + f" in {_count(len(lines[0].values), 'window')}" if said else "does not exist in any window"


# --- how old, how fast ---

def old(board: Board) -> str:
    """The age of what is served."""
    served = board.served
    if served is None or not served.version:
        newest = board.versions[0] if board.versions else None
        held = "the store holds no version yet" if newest is None else (
            f"the store's newest is {newest.number:,}, {span((board.time_us - newest.created_us) / 1e6)} old"
        )
        said = f"<p>Nothing is served; {held}.</p>"
    else:
        said = f'<p><span class="big">{_age(served.age_s)}</span> old: version {served.version:,}, as served</p>'
    return said + ("<p>No click was followed to an answer lately.</p>" if board.freshness is None else "")


def way(board: Board) -> Table | None:
    """A click's way to an answer that knows of it, part by part."""
    if board.freshness is None:
        return None
    way = board.freshness
    names = {"joined": "click → joined", "learnt": "→ learnt", "published": "→ published", "served": "→ served"}
    most = max((part["p50"] or 0.0 for part in way.parts.values()), default=0.0) or 1.0
    rows = [[
        names[name], _ms(part["p50"]), _ms(part["p99"]),
        f'<i class="bar" style="width:{100 * (part["p50"] or 0) / most:.0f}%"></i>',
    ] for name, part in way.parts.items()]
    rows.append(["<b>click → served</b>", f"<b>{_ms(way.whole['p50'])}</b>", f"<b>{_ms(way.whole['p99'])}</b>", ""])
    caption = f"A click's way, ms, of the newest {way.clicks:,} followed, none older than 5 min"
    return Table(caption, ["ms", "p50", "p99", ""], rows)


def fast(board: Board) -> str:
    """Examples and requests a second, and what waits."""
    speed, served = board.speed, board.served
    said = []
    if speed is None:
        said.append("<p>The trainer has not said anything yet.</p>")
    else:
        now = speed.examples_per_s
        rate = "Nothing is known of now; " if now is None else f'<span class="big">{_rate(now)}</span> examples/s learnt, '
        said.append(f"<p>{rate}{speed.learnt:,} learnt in all</p>")
        if len(speed.history) > 1:
            line = Line("examples/s", "model", speed.history)
            whole = f"{min(speed.history):,.0f} to {max(speed.history):,.0f} in the last {len(speed.history)} reports"
            places = [f"{len(speed.history) - place} s ago" for place in range(len(speed.history))]
            said.append(figure("Examples/s", whole, [line], places, None, 10.0, 0))
        idle = "" if speed.idle is None else f"; the learner waits {speed.idle:.0%} of the time"
        said.append(f"<p>{speed.waiting_rows:,} examples wait for their batch{idle}</p>")
    if board.lag:
        said.append(f"<p>Lag: {'; '.join(_lag(topic, lag) for topic, lag in board.lag.items())}</p>")
    if served is not None:
        rate = "" if served.requests_per_s is None else f'<span class="big">{_rate(served.requests_per_s)}</span> requests/s, '
        said.append(f"<p>{rate}{served.requests:,} requests since the scorer began</p>")
    return "".join(said)


def _lag(topic: str, lag: Mapping[str, int]) -> str:
    worst = max(lag, key=lambda partition: lag[partition])
    most = f", most of them in partition {escape(worst)}: {lag[worst]:,}" if len(lag) > 1 and lag[worst] else ""
    return f"{_count(sum(lag.values()), 'record')} of {topic}{most}"


# --- what drifts ---

def drifts(board: Board) -> str:
    """The alarms."""
    said = []
    if not board.alarms_open:
        said.append("<p>No alarm is open.</p>")
    else:
        said.append('<ul class="alarms">' + "".join(_alarm(one, board.time_us) for one in board.alarms_open) + "</ul>")
    if board.alarms_over:
        over = "".join(_alarm(one, board.time_us) for one in board.alarms_over)
        said.append(f'<p>Over lately:</p><ul class="alarms">{over}</ul>')
    if board.windows and not board.moved:
        said.append("<p>No slice has enough clicks on both sides yet to say that it moved.</p>")
    return "".join(said)


def moved_slices(board: Board) -> Table | None:
    """What moved most of what the model says."""
    if not board.moved:
        return None
    caption = f"Slices by how far the newest {_count(board.moved_windows, 'window')} moved (z beyond 4 is hardly chance)"
    return Table(caption, ["slice", "figure", "before → now", "z"], [
        [escape(f"{one.field}={one.value}"), FIGURES[one.figure], f"{one.before:.4f} → {one.now:.4f}", f"{one.z:+.1f}"]
        for one in board.moved
    ])


def moved_fields(board: Board) -> Table | None:
    """What moved most of what the model is fed with."""
    if not board.fields:
        return None
    head = ["field", "moved", "before → now", "z", "stability index"]
    return Table("Fields, by how far what the model is fed with moved", head, [
        [escape(one.field), FIELD_FIGURES[one.moved], f"{_figure(one.before[one.moved])} → {_figure(one.now[one.moved])}",
         f"{one.z:+.1f}", _figure(one.now["psi"])]
        for one in board.fields
    ])


def gate(board: Board) -> str:
    """Whether new versions go live."""
    now = board.gate
    if now is None:
        return ""
    if not now["held"]:
        return f"<p><b>Gate</b> {'open: new versions go live' if now['on'] else 'off'}</p>"
    until = f"; gives way at {clock(now['until_us'], board.time_us)}" if now["until_us"] else "; until somebody releases it"
    return (
        f'<p class="trouble"><b>Gate</b> holds new versions back since {clock(now["since_us"], board.time_us)} '
        f"({escape(now['reason'])}: {escape(now['text'])}); {_count(now['held_versions'], 'version')} not written{until}</p>"
    )


def _alarm(row: Mapping[str, Any], now_us: int) -> str:
    since_us = row.get("since_us") or row["time_us"]
    moved = [f"{field}={value}" for field, value, _ in row["slices"]] + [str(field) for field, _ in row["fields"]]
    most = f"; most: {', '.join(moved[:4])}" if moved else ""
    return (
        f'<li class="{escape(row["state"])}"><b>{escape(row["what"])}</b> {escape(row["text"] + most)} '
        f"<span class=\"since\">since {clock(since_us, now_us)}</span></li>"
    )


# --- versions ---

def no_versions(board: Board) -> str:
    """What stands where their table would."""
    return "" if board.versions else "<p>The store holds no version yet.</p>"


def versions(board: Board) -> Table | None:
    """The newest first; a version's number can be pressed, which `panels` puts into the field of orders."""
    if not board.versions:
        return None
    rows = [[
        f'<button type="button" tabindex="-1" data-version="{one.number}" aria-label="choose version {one.number}">'
        f"{one.number:,}</button>",
        clock(one.created_us, board.time_us), f"{one.examples_learnt:,}", escape(one.lineage[:8]), _marks(one, board),
    ] for one in board.versions]
    caption = f"{len(rows)} of {_count(board.version_count, 'version')}: the newest, one per stretch of time, and the pinned"
    return Table(caption, ["version", "published", "examples", "lineage", ""], rows)


def _marks(one: Version, board: Board) -> str:
    marks = [
        "served" if one.served else "", "pinned" if one.pinned else "",
        "" if one.back_to is None else f"weights of {one.back_to:,}", "newest" if one is board.versions[0] else "",
    ]
    return "".join(f'<span class="mark">{mark}</span>' for mark in marks if mark)


# --- dead letters, a slate by hand ---

def letters(found: Sequence[Letter], whole: int) -> str:
    """The newest first, each with why, from where, and its first bytes."""
    if not found:
        return "<p>No dead letter: every event could be used.</p>"
    said = "".join(
        f"<li><b>{escape(one.reason)}</b> events/{one.source_partition} offset {one.source_offset}, {one.size_bytes:,} bytes: "
        f"{escape(one.text)}<pre tabindex=\"0\">{escape(_first(one))}</pre></li>" for one in found
    )
    return f"<p>{len(found):,} of {_count(whole, 'letter')}, the newest first.</p><ol class=\"letters\">{said}</ol>"


def _first(letter: Letter) -> str:
    text = readable(letter.value)
    return text[:LETTER_CHARACTERS] + (" …" if len(text) > LETTER_CHARACTERS or letter.size_bytes > len(letter.value) else "")


def scored(answer: Scored) -> str:
    """Best first."""
    rows = [
        [str(item.rank), escape(item.item_id), f"{item.probability:.6f}", f"{item.logit:.4f}"] for item in answer.ranked()
    ]
    warned = "".join(f'<p class="trouble">{escape(text)}</p>' for text in answer.warnings)
    caption = f"Scored by version {answer.version:,} of lineage {answer.lineage[:8]}, {_age(answer.version_age_s)} old"
    return f"<p>{escape(caption)}</p>{Table(caption, ['rank', 'item', 'probability', 'logit'], rows).region()}{warned}"


def explained(told: ItemExplained) -> str:
    """What the logit loses without each field, as bars to either side; the pairs that count most below."""
    ranked = sorted(told.without.items(), key=lambda one: -abs(one[1]))
    most = max((abs(lost) for _, lost in ranked), default=0.0) or 1.0
    rows = [[escape(name), f"{told.own[name]:+.4f}", f"{lost:+.4f}", _either_side(lost / most)] for name, lost in ranked]
    pairs = sorted(told.pairs.items(), key=lambda one: -abs(one[1]))[:PAIRS]
    together = "; ".join(f"{escape(one)} with {escape(other)} {adds:+.4f}" for (one, other), adds in pairs if adds)
    sums = f"logit {told.logit:.4f}, of which {told.base:.4f} with every field left out"
    return (
        f"<div><p><b>{escape(told.item_id)}</b>: {sums}</p>"
        + Table(f"{told.item_id}: {sums}", ["field", "adds by itself", "lost without it", ""], rows).region()
        + (f"<p>Pairs: {together}</p>" if together else "") + "</div>"
    )


def _either_side(share: float) -> str:
    side = "plus" if share >= 0 else "minus"
    return f'<span class="sides"><i class="{side}" style="width:{50 * abs(share):.0f}%"></i></span>'


# --- numbers ---

def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
