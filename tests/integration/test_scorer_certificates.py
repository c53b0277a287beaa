"""Certificates that change while `freshet scorer` runs: what new connections are shown, on all its ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from ops.machine.ports import free_port
from schemas.config import Settings
from schemas.fields import load
from scorer.client import ScorerClient, ScorerUnavailable
from scorer.client.access import Access
from scorer.ports.tls import Certificates
from tests.kit.certificates import Authority
from tests.kit.processes import Process, wait_until
from tests.scorer.lineage import Lineage, RocksWriter, small

MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}
ITEMS: list[dict[str, Any]] = [{"id": "app1"}, {"id": "app2"}]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl, which is not here"),
]


class Papers:
    """The files that the settings name, and two authorities that can fill them."""

    def __init__(self, dir: Path) -> None:
        self.first, self.second = Authority(dir, "first"), Authority(dir, "second")
        self.pairs = {one: one.sign("scorer", days) for one, days in ((self.first, 2), (self.second, 9))}
        self.callers = {one: one.sign("caller") for one in (self.first, self.second)}
        self.certificate, self.key, self.ca = (dir / f"live.{kind}" for kind in ("pem", "key", "ca"))
        self.put(self.first)

    def put(self, authority: Authority) -> None:
        """Its certificate, key and self in place of what is there, one after the other."""
        for source, target in zip(
            (*self.pairs[authority], authority.ca_file), (self.certificate, self.key, self.ca), strict=True
        ):
            shutil.copy(source, target.with_suffix(".new"))
            os.replace(target.with_suffix(".new"), target)

    def settings(self) -> dict[str, str]:
        return {
            "score.tls_certificate_file": str(self.certificate), "score.tls_key_file": str(self.key),
            "score.tls_client_ca_file": str(self.ca),
        }

    def access(self, authority: Authority) -> Access:
        """Of a client that believes this authority alone, and has its certificate."""
        certificate, key = self.callers[authority]
        return Access(ca_file=str(authority.ca_file), certificate_file=str(certificate), key_file=str(key))

    def ends(self, authority: Authority) -> float:
        """When its certificate does, by openssl."""
        command = ["openssl", "x509", "-noout", "-enddate", "-in", str(self.pairs[authority][0])]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return datetime.strptime(told.strip() + " +0000", "notAfter=%b %d %H:%M:%S %Y GMT %z").timestamp()

    def shown_by(self, port: int) -> Authority | None:
        """Whose certificate a new connection is shown; None where there is none."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw, context.wrap_socket(raw) as connection:
                shown = connection.getpeercert(binary_form=True)
        except OSError:
            return None
        known = {ssl.PEM_cert_to_DER_cert(files[0].read_text()): one for one, files in self.pairs.items()}
        return known[shown or b""]

    def metrics(self, port: int, authority: Authority) -> dict[str, float]:
        """The certificate's figures, over a connection as `authority` asks for."""
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        context.load_cert_chain(*self.callers[authority])
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=5, context=context) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.split(" ") for line in lines if line.startswith("freshet_scorer_certificate_"))
        return {name.removeprefix("freshet_scorer_certificate_").partition("{")[0]: float(value) for name, value in pairs}


def test_new_connections_get_the_new_certificate_and_a_broken_one_is_refused(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """On every port, and as to whose certificate a client must show. Who is connected stays so; a file that cannot serve
    changes nothing but a metric and a line of the log, not even for a worker that has to start again."""
    papers = Papers(tmp_path)
    ports = {f"score.{key}": free_port() for key in ("port", "operator_port", "metrics_port")}
    settings = make_settings(**MODEL, **papers.settings(), **ports, **{"score.workers": 1})
    writer = RocksWriter(settings.store_dir)
    writer.write(Lineage(small(), load("appstore")).publish())
    target, first, second = f"127.0.0.1:{settings.score.port}", papers.first, papers.second

    def all_show(authority: Authority) -> bool:
        return {papers.shown_by(port) for port in ports.values()} == {authority}

    def answers(authority: Authority) -> int:
        with ScorerClient(target, papers.access(authority)) as client:
            client.wait_ready(10)
            return len(client.score({}, ITEMS, timeout_s=5).items)

    scorer = Process(settings, "scorer")
    try:
        wait_until(lambda: all_show(first), 60, "the first certificate on all ports")
        with ScorerClient(target, papers.access(first)) as connected:
            connected.wait_ready(30)
            papers.put(second)
            wait_until(lambda: all_show(second), 20, "the second certificate on all ports")
            assert answers(second) == 2
            with ScorerClient(target, papers.access(first)) as late, pytest.raises(ScorerUnavailable):
                late.score({}, ITEMS, timeout_s=0.5)
            assert len(connected.score({}, ITEMS, timeout_s=5).items) == 2
        metrics_port = settings.score.metrics_port
        assert papers.metrics(metrics_port, second) == {"ends_timestamp_seconds": papers.ends(second), "refused": 0}

        shutil.copy(papers.pairs[first][1], papers.key)  # the key of another
        wait_until(lambda: papers.metrics(metrics_port, second)["refused"] == 1, 20, "the metric that says refused")
        wait_until(lambda: "certificate.refused" in scorer.tail(200), 10, "the line about it")
        assert "the key is another certificate's" in scorer.tail(200)
        assert papers.metrics(metrics_port, second)["ends_timestamp_seconds"] == papers.ends(second)
        worker = next(one for one in psutil.Process(scorer.pid).children() if one.name() == "scorer-worker 0"[:15])
        worker.send_signal(signal.SIGKILL)
        wait_until(lambda: not worker.is_running(), 10, "the worker's end")
        wait_until(lambda: all_show(second), 20, "the second certificate from a new worker")
        assert answers(second) == 2

        papers.put(first)
        wait_until(lambda: all_show(first), 20, "the first certificate again")
        assert answers(first) == 2
        assert papers.metrics(metrics_port, first) == {"ends_timestamp_seconds": papers.ends(first), "refused": 0}
        assert scorer.tail(200).count("certificate.renewed") == 2
    finally:
        scorer.stop()
        writer.close()


def test_files_that_change_are_left_alone_until_they_have_settled(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """Certificate and key come one after the other, and half a pair is nobody's mistake: within a second nothing is read, and
    whole ones count then. Files that are gone are refused, and the same ones back again taken."""
    papers = Papers(tmp_path)
    now_s = [0.0]
    found = Certificates(make_settings(**papers.settings()).score, lambda: now_s[0])
    before = found.tls
    shutil.copy(papers.pairs[papers.second][0], papers.certificate)
    now_s[0] = papers.certificate.stat().st_ctime + 0.9
    assert found.now() is before
    assert found.refused == ""
    papers.put(papers.second)
    now_s[0] = papers.ca.stat().st_ctime + 1.1
    assert found.now().ends_s == papers.ends(papers.second)
    papers.key.unlink()
    assert found.now().ends_s == papers.ends(papers.second)
    assert "tls_key_file" in found.refused
    papers.put(papers.second)
    now_s[0] = papers.ca.stat().st_ctime + 1.1
    assert found.now().ends_s == papers.ends(papers.second)
    assert found.refused == ""
