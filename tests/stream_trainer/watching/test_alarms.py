import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from schemas.config import AlarmsConfig
from schemas.errors import ConfigError
from schemas.journal import read
from stream_trainer.watching import alarms
from stream_trainer.watching.alarms import Alarm, Alarms, standing

DEADLINE_S = 20.0


def alarm(what: str = "drift.calibration", state: str = "raised", row: int = 0, **more: object) -> Alarm:
    return Alarm(what=what, state=state, time_us=1_700_000_000_000_000, text="it moved", row=row, **more)  # type: ignore[arg-type]


def of(path: Path, url: str = "", process: str = "trainer", lineage: str = "a", timeout_s: float = 5.0) -> Alarms:
    config = AlarmsConfig(webhook=url, timeout_s=timeout_s)
    return Alarms(config, path / "alarms.jsonl", model="appstore", process=process, lineage=lineage)


class Receiver:
    """An HTTP server that keeps what it is sent. answers: a status for each POST in turn, the last for all others."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers) or [200]
        self.bodies: list[dict[str, object]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.may_answer.wait(DEADLINE_S)
                status = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if status < 300:
                    outer.bodies.append(body)
                self.send_response(status)
                if status in (301, 302):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Tests print enough."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=s3cret"


@contextmanager
def receiver(*answers: int) -> Iterator[Receiver]:
    made = Receiver(*answers)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.may_answer.set()
        made.server.shutdown()
        made.server.server_close()
        thread.join()


def until(true: object) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_alarm_is_a_line_of_the_file_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """Whoever reads the file has all that was said; numbers of numpy and figures that do not exist too."""
    said = alarm(
        row=40_000, since_row=20_000, was=np.float64(1.0), now=float("nan"),
        slices=(("country", "NO", np.float32(7.5)),), fields=(("tags", 3.0),),
    )
    of(tmp_path).raise_(said)
    (line,) = read(tmp_path / "alarms.jsonl")
    assert (line["event"], line["model"], line["process"], line["lineage"]) == ("alarm", "appstore", "trainer", "a")
    assert line["time_us"] == said.time_us
    back = Alarm.from_dict(line)
    assert (back.was, back.now, back.slices, back.fields) == (1.0, None, (("country", "NO", 7.5),), (("tags", 3.0),))


def test_what_is_raised_is_open_until_it_is_over_and_outlives_its_process(tmp_path: Path) -> None:
    """Open is what was raised last and not ended, under each name, in the process that said it."""
    first = of(tmp_path)
    for one in (alarm("drift.loss"), alarm("lag"), alarm("drift.loss", "over"), alarm("gate.held")):
        first.raise_(one)
    of(tmp_path, process="joiner").raise_(alarm("lag", "over"))
    assert [one.what for one in first.open] == ["lag", "gate.held"]
    assert [one.what for one in of(tmp_path).open] == ["lag", "gate.held"]
    assert of(tmp_path, process="joiner").open == ()
    assert [row["what"] for row in standing(read(tmp_path / "alarms.jsonl"))] == ["gate.held", "lag"]


def test_a_stretch_of_log_gone_over_again_raises_nothing_twice(tmp_path: Path) -> None:
    """After a kill the same windows close again: what stands for a row of this lineage is not said again; what has no row, and
    another lineage's rows, are."""
    before = of(tmp_path)
    for one in (alarm(row=40), alarm(state="over", row=60), alarm("lag"), alarm("lag", "over")):
        before.raise_(one)
    again = of(tmp_path)
    for one in (alarm(row=40), alarm(state="over", row=60), alarm("lag"), alarm(row=80)):
        again.raise_(one)
    of(tmp_path, lineage="b").raise_(alarm(row=40))
    said = [(row["lineage"], row["what"], row["row"]) for row in read(tmp_path / "alarms.jsonl")]
    assert said[4:] == [("a", "lag", 0), ("a", "drift.calibration", 80), ("b", "drift.calibration", 40)]


def test_two_processes_and_their_threads_never_tear_a_line(tmp_path: Path) -> None:
    """Every line that several processes append at once stands whole, also where it is longer than a page."""
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from tests.stream_trainer.watching.test_alarms import alarm, of\n"
        "mine = of(Path(sys.argv[1]), process=sys.argv[2])\n"
        "slices = tuple(('country', sys.argv[2] * 10, float(n)) for n in range(200))\n"
        "def many():\n"
        "    for row in range(50): mine.raise_(alarm(slices=slices))\n"
        "threads = [threading.Thread(target=many) for _ in range(4)]\n"
        "[one.start() for one in threads]; [one.join() for one in threads]\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for name in ("joiner", "trainer")
    ]
    assert [one.wait(DEADLINE_S * 3) for one in running] == [0, 0]
    lines = (tmp_path / "alarms.jsonl").read_bytes().splitlines()
    assert len(lines[0]) > 4096
    assert [json.loads(line)["process"] for line in lines].count("joiner") == 200
    assert len(lines) == 400


def test_a_webhook_hears_each_alarm_once_in_order(tmp_path: Path) -> None:
    """The body is the line of the file; "text" is what chat programs show."""
    with receiver() as there:
        mine = of(tmp_path, there.url)
        for row in range(1, 6):
            mine.raise_(alarm(row=row))
        mine.close()
        assert [body["row"] for body in there.bodies] == [1, 2, 3, 4, 5]
        assert there.bodies == list(read(tmp_path / "alarms.jsonl"))
        assert there.bodies[0]["text"] == "it moved"


def test_a_webhook_that_fails_is_tried_again_and_one_that_refuses_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 passes; 400 and a redirect do not: they are counted, and what comes after them is sent all the same."""
    monkeypatch.setattr(alarms, "PAUSES_S", (0.01, 0.02))
    with receiver(503, 503, 200, 400, 302, 200) as there:
        mine = of(tmp_path, there.url)
        for row in range(1, 5):
            mine.raise_(alarm(row=row))
        until(lambda: len(there.bodies) == 2)
        assert ([body["row"] for body in there.bodies], mine.dropped) == ([1, 4], 2)
        mine.close()


def test_a_webhook_that_is_down_is_reached_once_it_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at first: the alarm waits, and arrives."""
    monkeypatch.setattr(alarms, "PAUSES_S", (0.01, 0.05))
    there = Receiver()
    there.server.server_close()                       # its port is free, nobody listens
    mine = of(tmp_path, there.url)
    mine.raise_(alarm(row=1))
    time.sleep(0.1)
    port = there.server.server_address[1]
    back = ThreadingHTTPServer(("127.0.0.1", port), there.server.RequestHandlerClass)
    thread = threading.Thread(target=back.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    until(lambda: there.bodies)
    mine.close()
    back.shutdown()
    back.server_close()


def test_a_webhook_that_hangs_keeps_nobody_waiting_and_what_it_misses_is_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three times as many alarms as may wait are raised in a moment; the file has all, the queue its bound, the rest is counted
    and said, and a process that ends does not wait for it. The address, which may hold a secret, is in no log."""
    many = 3 * alarms.QUEUED
    with receiver() as there:
        there.may_answer.clear()
        mine = of(tmp_path, there.url, timeout_s=30.0)
        longest = 0.0
        for row in range(1, many + 1):
            began = time.thread_time(), time.monotonic()
            mine.raise_(alarm(row=row))
            longest = max(longest, time.monotonic() - began[1] - (time.thread_time() - began[0]))
        assert longest < 5.0                          # the server would keep it for twenty
        assert sum(1 for _ in read(tmp_path / "alarms.jsonl")) == many
        assert many - alarms.QUEUED - 1 <= mine.dropped <= many - alarms.QUEUED
        began_close = time.monotonic()
        mine.close()
        assert time.monotonic() - began_close < alarms.CLOSE_S + 5.0
        log = "".join(capfd.readouterr())
        assert "alarm.undelivered" in log
        assert "s3cret" not in log


def test_a_full_disk_stops_neither_the_caller_nor_the_webhook(tmp_path: Path) -> None:
    """/dev/full refuses every write: the alarm is heard all the same."""
    os.symlink("/dev/full", tmp_path / "alarms.jsonl")
    with receiver() as there:
        mine = of(tmp_path, there.url)
        mine.raise_(alarm(row=1))
        assert [one.what for one in mine.open] == ["drift.calibration"]
        mine.close()
        assert [body["row"] for body in there.bodies] == [1]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "hooks.example.org/x", "http://", "ftp://host/x", "http://host:99999/"])
def test_a_webhook_that_is_no_http_address_is_refused(url: str) -> None:
    """At the start, by name, without repeating the address, which may be a secret."""
    with pytest.raises(ConfigError, match=r"^alarms\.webhook: must be http://HOST"):
        AlarmsConfig(webhook=url)
    AlarmsConfig(webhook="https://hooks.example.org/services/T0/B0/x")
