"""Two models of different architecture and schema in one `freshet scorer`: each by its name, and none harmed by the other."""

from __future__ import annotations

import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ops.machine.ports import free_port
from ops.settings import of_scorer
from schemas import journal
from schemas.config import Settings
from schemas.errors import ConfigError, RequestError
from schemas.fields import Encoder, FieldSchema, Slate, load
from schemas.proto.scoring_pb2 import StatusRequest, StatusResponse
from schemas.proto.scoring_pb2_grpc import OperatorStub
from scorer.client import SERVICE, Scored, ScorerClient, ScorerUnavailable
from tests.kit.processes import Process, wait_until
from tests.scorer.lineage import Lineage, RocksWriter

MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}
GAMES = """
name = "games"
[[field]]
name = "player"
number = 1
kind = "categorical"
side = "context"
[[field]]
name = "genre"
number = 2
kind = "categorical"
side = "item"
"""
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

pytestmark = pytest.mark.integration


class Model:
    """One of them: its store, and a slate with what it should give."""

    def __init__(self, settings: Settings, lineage: Lineage, slate: Slate) -> None:
        self.settings, self.lineage, self.slate = settings, lineage, slate
        self.name = settings.model.name
        self.writer = RocksWriter(settings.store_dir)
        self._truths: dict[tuple[str, int], np.ndarray[Any, Any]] = {}

    def publish(self, **options: Any) -> int:
        """The next version's number."""
        self.writer.write(self.lineage.publish(**options))
        return self.lineage.next - 1

    def ask(self, client: ScorerClient, timeout_s: float = 5) -> Scored:
        items = [
            {"id": item, "features": {field: column[place] for field, column in self.slate.columns.items()}}
            for place, item in enumerate(self.slate.item_ids)
        ]
        return client.score(self.slate.context, items, model=self.name, timeout_s=timeout_s)

    def is_right(self, answer: Scored) -> bool:
        """Whether it is what the version that it names gives, recomputed from the whole table as it was then."""
        assert (answer.model, answer.lineage) == (self.name, self.lineage.name)
        key = (answer.lineage, answer.version)
        if key not in self._truths:
            bags, _ = Encoder(self.lineage.schema, training=False).encode(self.slate)
            self._truths[key] = self.lineage.truth(answer.version, bags)
        return np.allclose([item.logit for item in answer.items], self._truths[key], atol=2e-6)


class Running:
    """The scorer of both, as a process."""

    def __init__(self, settings: Settings, models: tuple[Model, Model]) -> None:
        self.settings, self.models = settings, models
        self.process = Process(settings, "scorer")
        self.client = ScorerClient(f"127.0.0.1:{settings.score.port}")
        self._operators = grpc.insecure_channel(f"127.0.0.1:{settings.score.operator_port}")

    def child(self, name: str) -> psutil.Process:
        """The newest of that name: a process's own is at most 15 long."""
        found = [one for one in psutil.Process(self.process.pid).children() if one.name() == f"scorer-{name}"[:15]]
        return max(found, key=lambda one: one.create_time())

    def kill(self, name: str) -> None:
        """SIGKILL, and until it is gone."""
        ending = self.child(name)
        ending.send_signal(signal.SIGKILL)
        wait_until(lambda: not ending.is_running() or ending.status() == psutil.STATUS_ZOMBIE, 10, f"the end of {name}")

    def serves(self, model: Model, number: int) -> None:
        """Until that version is what every worker answers with, rightly."""
        wait_until(
            lambda: self.versions(model) == [number] * 2, 20, f"version {number} of {model.name} in both workers", 0.02
        )
        answer = model.ask(self.client)
        assert answer.version == number
        assert model.is_right(answer)

    def status(self, model: str = "") -> StatusResponse:
        asked = StatusRequest(model=model)
        found: StatusResponse = OperatorStub(self._operators).Status(asked, timeout=10, wait_for_ready=True)
        return found

    def versions(self, model: Model) -> list[int]:
        """That its workers answer from; none while the first model's follower, which has the operators' ports, is away."""
        try:
            return [worker.version for worker in self.status(model.name).workers]
        except grpc.RpcError as away:
            if away.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return []

    def health(self, port: int, *names: str) -> list[int]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return [stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status for name in names]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.client.close()
        self._operators.close()
        return self.process.stop()

    @contextmanager
    def asking(self, model: Model) -> Iterator[list[Scored]]:
        """One request after the other meanwhile; their answers. A request that fails fails the test."""
        answers: list[Scored] = []
        done, wrong = threading.Event(), []

        def go_on() -> None:
            try:
                while not done.is_set():
                    answers.append(model.ask(self.client))
            except (RequestError, ScorerUnavailable) as failed:
                wrong.append(failed)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield answers
        finally:
            done.set()
            thread.join()
        assert not wrong
        assert answers


@pytest.fixture
def running(make_settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Running]:
    """A scorer whose first model has a version, and whose second has none."""
    schema, file = tmp_path / "games.toml", tmp_path / "games" / "freshet.toml"
    file.parent.mkdir()
    schema.write_text(GAMES)
    file.write_text(f'[model]\nname = "games"\narchitecture = "lr"\nschema = "{schema}"\nbits = 8\nstatistics = false\n')
    ports = {f"score.{key}": free_port() for key in ("port", "operator_port", "metrics_port")}
    settings = make_settings(**MODEL, **ports, **{"score.workers": 2, "score.also": str(file), "score.poll_s": 0.005})
    own, games = of_scorer(settings)

    def model(settings: Settings, schema: FieldSchema, slate: Slate, name: str) -> Model:
        return Model(settings, Lineage(settings.model, schema, name), slate)

    both = (
        model(own, load("appstore"), Slate(["a", "b"], {"country": "NO"}, {"category": ["games", "food"]}), "a" * 32),
        model(games, load(str(schema)), Slate(["x", "y", "z"], {"player": "p1"}, {"genre": ["chess", "go", None]}), "c" * 32),
    )
    both[0].publish()
    found = Running(settings, both)
    try:
        found.client.wait_ready(60, "appstore")
        yield found
    finally:
        found.stop()
        for one in both:
            one.writer.close()


def test_each_is_chosen_by_its_name_and_ready_by_itself(running: Running) -> None:
    """A model without a version is UNAVAILABLE for itself alone, one that is not there NOT_FOUND with the names there are, and
    who names none gets the first. Health, status and metrics speak of each; versions of both are right, written down apart."""
    first, games = running.models
    client, port, operators = running.client, running.settings.score.port, running.settings.score.operator_port
    running.serves(first, 1)
    names = ("", SERVICE, f"{SERVICE}/appstore", f"{SERVICE}/games")
    assert running.health(port, *names) == [SERVING, SERVING, SERVING, NOT_SERVING]
    wait_until(lambda: running.health(operators, *names[:3]) == [SERVING] * 3, 10, "SERVING for operators", 0.05)
    assert running.health(operators, names[3]) == [NOT_SERVING]
    with pytest.raises(ScorerUnavailable, match="no version of 'games' is loaded yet"):
        games.ask(client, timeout_s=0.3)
    with pytest.raises(RequestError, match="NOT_FOUND: model 'chess' is not served here; this scorer has 'appstore', 'games'"):
        client.score({}, [{"id": "a"}], model="chess")
    with pytest.raises(RequestError, match="NOT_FOUND: model 'chess' is not served here"):
        client.explain({}, [{"id": "a"}], model="chess")
    assert client.score({}, [{"id": "a"}]).model == "appstore"
    assert running.status("games").lineage == ""

    games.publish()
    client.wait_ready(20, "games")
    running.serves(games, 1)
    assert client.explain({"player": "p1"}, [{"id": "x"}], model="games").model == "games"
    wait_until(lambda: running.health(operators, *names) == [SERVING] * 4, 10, "SERVING for all", 0.05)
    for number in (2, 3):
        for one in (first, games):
            one.publish()
            running.serves(one, number)

    status = running.status()
    assert (status.model, list(status.models), status.version) == ("appstore", ["appstore", "games"], 3)
    assert running.status("games").lineage == games.lineage.name
    with pytest.raises(grpc.RpcError) as failed:
        running.status("chess")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    with urllib.request.urlopen(f"http://127.0.0.1:{running.settings.score.metrics_port}/metrics", timeout=5) as answer:
        page = answer.read().decode()
    assert page.count("# TYPE freshet_scorer_version gauge") == 1
    for one in running.models:
        assert f'\nfreshet_scorer_version{{model="{one.name}"}} 3.0\n' in page

    assert running.stop() == 0
    for one in running.models:
        last = list(journal.read(one.settings.metrics_dir / "scorer.jsonl"))[-1]
        assert (last["lineage"], last["version"]) == (one.lineage.name, 3)
        assert last["items_scored"] >= 3 * len(one.slate.item_ids)


def test_one_is_loaded_afresh_and_killed_and_the_other_does_not_feel_it(running: Running) -> None:
    """While the one gets versions and a whole new lineage, loses its follower and gets it back, every request to the other is
    answered, rightly and from its version; then the other way round; then a worker goes, and comes back with both."""
    first, games = running.models
    games.publish()
    running.client.wait_ready(20, "games")

    with running.asking(first) as answers:
        for number in range(2, 7):
            games.publish(rows=200)
            running.serves(games, number)
        games.lineage = Lineage(games.settings.model, games.lineage.schema, "d" * 32, first=100)
        games.publish()
        running.serves(games, 100)
    assert {answer.version for answer in answers} == {1}
    assert all(first.is_right(answer) for answer in answers)

    for gone, other in ((games, first), (first, games)):
        was = {answer.version for answer in (gone.ask(running.client),)}
        with running.asking(other) as answers, running.asking(gone) as meanwhile:
            running.kill(f"{gone.name} follower")
            number = other.publish()
            wait_until(lambda: other.ask(running.client).version == number, 20, "the other's next version", 0.01)  # noqa: B023
        assert all(other.is_right(answer) for answer in answers)
        assert {answer.version for answer in meanwhile} == was
        running.serves(gone, gone.publish())

    running.kill("worker 0")
    for one in (first, games):
        running.serves(one, one.publish())


def test_models_that_do_not_fit_together_end_the_start(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """Before anything listens or is made; the message names the largest."""
    file = tmp_path / "freshet.toml"
    file.write_text('[model]\nname = "games"\nbits = 30\n')
    scorer = Process(make_settings(**MODEL, **{"score.also": str(file), "score.workers": 4}), "scorer")
    wait_until(lambda: not scorer.alive, 60, "the scorer's end")
    assert scorer.stop() == 1
    assert "the table of 'games' in the scorer's 5 processes" in scorer.tail()
    assert "scorer.listening" not in scorer.tail()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, r"score\.also: .*freshet\.toml does not exist; name another model's"),
        ('[model]\nname = "appstore"\n', r"has model\.name=appstore, which this scorer serves already"),
        ("[model]\nnam = 3\n", r"nam.*did you mean.*name"),
    ],
)
def test_models_that_cannot_be_told_apart_end_the_start(
    make_settings: Callable[..., Settings], tmp_path: Path, text: str | None, told: str
) -> None:
    """With the file's name and what to do."""
    file = tmp_path / "freshet.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        of_scorer(make_settings(**{"score.also": str(file)}))


def test_a_file_counts_as_it_stands(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """What it does not say is the default, whatever the first model has; only where it writes is the first's."""
    file = tmp_path / "freshet.toml"
    file.write_text('[model]\nname = "games"\n[score]\nstrict = true\n')
    first = make_settings(**MODEL, **{"score.also": f" {file} ,", "model.architecture": "fm"})
    own, games = of_scorer(first)
    default = Settings().model
    assert own is first
    assert (games.model.name, games.model.architecture, games.model.bits) == ("games", default.architecture, default.bits)
    assert games.score.strict
    assert games.var == first.var
    assert games.store_dir != first.store_dir
