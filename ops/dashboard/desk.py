"""What the page does on request: orders behind a token, dead letters, a slate scored and explained. It blocks."""

from __future__ import annotations

import hmac
import threading
from typing import Literal

import structlog

from ops.dashboard import slate
from ops.events import dead_letters
from ops.events.dead_letters import Letter
from ops.kafka.cluster import admin
from ops.machine.ports import reached
from ops.versions import orders
from schemas import fields
from schemas.config import Settings
from schemas.control import Then, What
from scorer.client import Explained, Scored, ScorerClient
from scorer.client.access import access_of
from scorer.ports.tokens import listed

ANSWER_S = 20.0         # for the trainer's word on an order; a rollback takes it some seconds
BROKER_S = 2.0
SCORE_S = 3.0
EXPLAIN_S = 10.0
LETTERS = 20

log = structlog.get_logger()


class Desk:
    """For any thread; orders one after the other."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError where the token's file cannot be read, SchemaError."""
        self._settings = settings
        given = listed("dashboard.token", settings.dashboard.token, settings.dashboard.token_file)
        self._token = given[0].encode() if given else None
        self._one_order = threading.Lock()
        self.schema = fields.load(settings.model.schema)

    @property
    def takes_orders(self) -> bool:
        """Whether there is a token that opens it."""
        return self._token is not None

    def opens(self, given: str) -> bool:
        """Whether that is the token."""
        right = self._token is not None and hmac.compare_digest(given.strip().encode(), self._token)
        if not right:
            log.warning("dashboard.token_refused")
        return right

    def order(self, what: What, version: int, then: Then | None = None) -> str:
        """Give it; the trainer's word. Raises SnapshotError, BrokerError, ConfigError."""
        with self._one_order:
            log.warning("dashboard.order", what=what, version=version, then=then)
            self._find_broker()
            report = orders.about_version(self._settings, what, version, then, ANSWER_S)
            return orders.about_version_text(report, ANSWER_S)

    def gate(self, what: Literal["hold", "release"]) -> str:
        """Have the gate hold or release; the trainer's word. Raises BrokerError, ConfigError."""
        with self._one_order:
            log.warning("dashboard.order", what=what)
            self._find_broker()
            return orders.to_gate_text(orders.to_gate(self._settings, what, ANSWER_S), ANSWER_S)

    def letters(self) -> tuple[list[Letter], int]:
        """The newest dead letters, newest first, and how many there are. Raises BrokerError."""
        self._find_broker()
        return dead_letters.newest(self._settings, LETTERS)

    def score(self, form: slate.Form) -> Scored:
        """Raises RequestError, ScorerUnavailable."""
        asked = slate.slate_of(form, self.schema)
        with self._client() as client:
            return client.score(asked["context"], asked["items"], self._settings.model.name, timeout_s=SCORE_S)

    def explain(self, form: slate.Form) -> Explained:
        """The same errors."""
        asked = slate.slate_of(form, self.schema)
        with self._client() as client:
            return client.explain(asked["context"], asked["items"], model=self._settings.model.name, timeout_s=EXPLAIN_S)

    def _find_broker(self) -> None:
        """Raises BrokerError soon: clients would try for half a minute, and somebody waits."""
        with admin(self._settings.kafka, BROKER_S):
            pass

    def _client(self) -> ScorerClient:
        score = self._settings.score
        return ScorerClient(reached(score.host, score.port), access_of(score))
