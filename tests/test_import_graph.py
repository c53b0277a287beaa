"""Who may import whom. The tables say what DESIGN.md draws; a new arrow is a decision, made here or not at all."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# ops, tests → stream_trainer | scorer → schemas. The two in the middle meet only in snapshots and topics.
ROOMS = {
    "schemas": set(),
    "stream_trainer": {"schemas"},
    "scorer": {"schemas"},
    "ops": {"schemas", "stream_trainer", "scorer"},
    "tests": {"schemas", "stream_trainer", "scorer", "ops"},
}

# Within a room: which of its other folders a folder's files may import.
FOLDERS = {
    "scorer/answers": set(),
    "scorer/ports": set(),
    "scorer/client": {"ports"},
    "scorer/versions": {"answers"},
    "stream_trainer/joining": set(),
    "stream_trainer/learning": set(),
    "stream_trainer/watching": {"learning"},
    "stream_trainer/publishing": {"learning", "watching"},
    "ops/machine": set(),
    "ops/terminal": set(),
    "ops/formats": set(),
    "ops/watching": set(),
    "ops/kafka": {"machine"},
    "ops/broker": {"kafka", "machine"},
    "ops/events": {"formats", "kafka"},
    "ops/offline": {"formats"},
    "ops/simulator": {"kafka"},
    "ops/versions": {"kafka", "terminal", "watching"},
    "ops/running": {"broker", "kafka", "machine", "simulator", "terminal", "versions", "watching"},
    "ops/dashboard": {"events", "kafka", "machine", "simulator", "terminal", "versions", "watching"},
    "ops/bench": {"broker", "formats", "kafka", "machine", "offline", "simulator", "terminal", "watching"},
    "ops/verbs": {
        "bench", "broker", "dashboard", "events", "formats", "kafka", "machine", "offline", "running", "simulator", "terminal",
        "versions", "watching",
    },
    "ops/bench/measuring": set(),
    "ops/bench/joining": {"measuring"},
    "ops/bench/learning": {"measuring"},
    "ops/bench/peers": {"measuring"},
    "ops/bench/scoring": {"measuring", "peers"},
}

# Each outside thing is touched in these files alone (a folder ends in a slash). What is not listed, any file may use.
ONLY_IN = {
    "faust": ["stream_trainer/faust_driver.py"],
    "mode": ["stream_trainer/faust_driver.py"],
    "aiokafka": ["stream_trainer/faust_driver.py", "stream_trainer/joining/again.py"],
    "kafka": ["ops/kafka/", "ops/versions/", "ops/events/", "ops/simulator/live.py", "ops/bench/join.py", "scorer/versions/"],
    # The one that writes, the one that reads, and the one that writes what came from another machine's.
    "rocksdict": ["stream_trainer/store.py", "scorer/versions/reader.py", "scorer/versions/replica.py"],
    "grpc": ["scorer/client/", "scorer/ports/", "scorer/answers/service.py", "scorer/worker.py", "scorer/operators.py",
             "schemas/proto/", "ops/bench/scoring/child.py", "ops/bench/peers/mlserver.py"],
    "grpc_health": ["scorer/client/clients.py", "scorer/ports/health.py", "scorer/worker.py", "scorer/operators.py"],
    "grpc_reflection": ["scorer/worker.py", "scorer/operators.py"],
    "pyarrow": ["stream_trainer/watching/metric_log.py", "stream_trainer/watching/looking_back.py", "ops/formats/parquet.py",
                "ops/watching/windows.py"],
    "typer": ["ops/cli.py", "ops/verbs/"],
    "rich": ["ops/terminal/console.py"],
    "honcho": ["ops/running/run.py"],
    "nicegui": ["ops/dashboard/panels.py", "ops/dashboard/server.py"],
    "river": ["stream_trainer/watching/drift.py", "ops/river_estimator.py", "ops/bench/detectors.py"],
}

# The only file that holds a gRPC servicer of ours.
SERVICER = "scorer/answers/service.py"

# Values in, values out: these use nothing from outside but what stands beside them, and no clock, chance or I/O.
PURE = {
    "stream_trainer/joining/join.py": {"numpy"},
    "stream_trainer/learning/learner.py": {"numpy", "torch"},
    "stream_trainer/learning/optimisers.py": {"torch"},
    "stream_trainer/watching/progressive.py": {"numpy"},
    "stream_trainer/watching/windows.py": {"numpy"},
    "stream_trainer/watching/sampling.py": {"numpy"},
    "stream_trainer/watching/marks.py": {"numpy"},
    "stream_trainer/watching/slices.py": {"numpy"},
    "stream_trainer/watching/watch.py": {"numpy"},
    "stream_trainer/watching/drift.py": {"numpy", "river"},
    "stream_trainer/publishing/gate.py": {"numpy", "orjson"},
    "stream_trainer/publishing/plausible.py": {"numpy"},
    "stream_trainer/watching/inputs.py": {"numpy"},
    "stream_trainer/watching/health.py": set(),
    "stream_trainer/learning/table.py": {"numpy", "torch"},
    "schemas/hashing.py": {"numpy", "xxhash"},
    "schemas/models/": {"numpy", "torch"},
}
IMPURE = {"asyncio", "multiprocessing", "os", "random", "socket", "subprocess", "threading", "time"}


def _files(*rooms: str) -> Iterator[str]:
    for room in rooms:
        yield from (str(path.relative_to(ROOT)) for path in sorted((ROOT / room).rglob("*.py")))


@cache
def _imported(file: str) -> Sequence[tuple[int, str]]:
    """(line, dotted name) of all that is imported, inside functions too."""
    found = []
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{module}.{name.name}") for name in node.names]
    return found


def _beside(above: str) -> dict[str, set[str]]:
    """The folders of a folder that stand in the table, by their own names, and which of each other they may import."""
    return {folder.rpartition("/")[2]: known for folder, known in FOLDERS.items() if folder.rpartition("/")[0] == above}


def _lies_in(file: str, places: list[str] | dict[str, set[str]]) -> str | None:
    return next((place for place in places if file == place or (place.endswith("/") and file.startswith(place))), None)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    """No file imports a room that its own must not know."""
    wrong = [
        f"{file}:{line} imports {name}"
        for file in _files(room)
        for line, name in _imported(file)
        if name.startswith(".") or (name.split(".")[0] in ROOMS.keys() - ROOMS[room] - {room})
    ]
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_a_room_know_only_those_below(folder):
    """An answer knows nothing of where its version came from, nor of the port that it leaves by."""
    above, _, own = folder.rpartition("/")
    others = set(_beside(above)) - FOLDERS[folder] - {own}
    dotted = above.replace("/", ".")
    wrong = [
        f"{file}:{line} imports {name}"
        for file in _files(folder)
        for line, name in _imported(file)
        if any(f"{name}.".startswith(f"{dotted}.{other}.") for other in others)
    ]
    assert not wrong


@pytest.mark.parametrize("above", sorted({folder.rpartition("/")[0] for folder in FOLDERS}))
def test_folders_beside_each_other_form_no_circle(above):
    """Each stands in the table, and none comes back to itself by its arrows."""
    table = _beside(above)
    assert set(table) == {path.parent.name for path in (ROOT / above).glob("*/__init__.py")}
    TopologicalSorter(table).prepare()


@pytest.mark.parametrize("outside", ONLY_IN)
def test_one_file_alone_touches_each_outside_thing(outside):
    """Faust, RocksDB, gRPC and the others stay where they were put."""
    wrong = [
        f"{file}:{line} imports {name}"
        for file in _files(*(room for room in ROOMS if room != "tests"))
        for line, name in _imported(file)
        if name.split(".")[0] == outside and not _lies_in(file, ONLY_IN[outside])
    ]
    assert not wrong


def test_one_file_alone_holds_the_servicer():
    """Every class that derives from a generated servicer of ours stands in one file."""
    found = {
        file
        for file in _files("schemas", "stream_trainer", "scorer", "ops")
        if not file.endswith("_pb2_grpc.py")
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("ScorerServicer") for base in node.bases)
    }
    assert found == {SERVICER}


@pytest.mark.parametrize("place", PURE)
def test_pure_files_have_no_clock_no_chance_and_no_io(place):
    """From outside the standard library only what is allowed, and nothing of the standard library that acts."""
    files = [file for file in _files("schemas", "stream_trainer") if _lies_in(file, [place])]
    assert files, f"{place} is gone: mend the table"
    wrong = [
        f"{file}:{line} imports {name}"
        for file in files
        for line, name in _imported(file)
        if (top := name.split(".")[0]) in IMPURE
        or (top not in sys.stdlib_module_names and top not in ROOMS and top not in PURE[place])
    ]
    assert not wrong
