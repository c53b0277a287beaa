"""The scorer beside a plain grpcio server with the same model, in turns in one run: speed, reloads, cold start, memory.

DeepFM of 39 fields (20 of the context), 10 factors, 400-400-400, 2^20 rows that were all touched; values by Zipf's law. Server
and load generator share the machine, as the bars say.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from ops.bench.peers.environment import PeerError
from ops.bench.peers.plain import PlainModel
from ops.bench.scoring import mlserver
from ops.bench.scoring.mlserver import MlServer
from ops.bench.scoring.picture import EDGES, drawn
from ops.bench.scoring.processes import BenchFailed, Load, scorer_of, server, workers
from ops.bench.scoring.served import FIELDS, MODEL, Writer, requests, schema_in, settings_for
from ops.machine.ports import free_port
from ops.settings import Loaded
from schemas import fields, journal
from schemas.config import Settings
from schemas.proto import scoring_pb2
from scorer.client import ScorerClient

COLD_BITS = 22

# What is asked of the figures: name → (key, whether more is better, the bar).
BARS: Sequence[tuple[str, str, bool, float]] = (
    ("requests/s of a plain grpcio server, slates of 100", "of_plain", True, 2.7),
    ("requests/s of MLServer, the same", "of_mlserver", True, 5.0),
    ("p99 ms at half of saturation", "p99_ms", False, 3.0),
    ("p50 ms of slates of 1,000", "p50_ms_1000", False, 4.0),
    ("with strings, of the requests/s with ready ids", "strings_of_ready", True, 0.5),
    ("p99 ms above idle, versions of 20,000 rows", "reload_p99_above_ms", False, 0.5),
    ("worst ms of idle's worst, the same", "reload_worst_of_idle", False, 2.0),
    ("throughput of idle's, the same", "reload_throughput", True, 0.95),
    ("p99 ms above idle, versions of 100,000 rows", "reload_100k_p99_above_ms", False, 2.0),
    ("publish to served ms, 10,000 rows, p99", "publish_to_served_p99_ms", False, 100.0),
    ("cold start s, 2^22 rows", "cold_start_s", False, 3.0),
    ("MB of a worker beyond its table", "worker_mb_beyond_table", False, 300.0),
)
# Of a probability from what float32 gives, by score.precision: equal, or the bound that is stated (docs/bench-score.md).
MOST_DIFFERENT: Mapping[str, float] = {"fp32": 1e-6, "auto": 1e-3, "bf16": 1e-3}

Say = Callable[[str], None]


def compare(loaded: Loaded, rounds: int, seconds: float, seed: int, say: Say) -> dict[str, Any]:
    """All figures; medians over the rounds. seconds: of each measured load."""
    with TemporaryDirectory(prefix="freshet-bench-") as directory, ExitStack() as stack:
        schema = schema_in(Path(directory))
        settings = settings_for(Path(directory) / "var", schema, free_port(), loaded, MODEL)
        trainer = Writer(settings, seed)
        stack.callback(trainer.close)
        trainer.publish(None)
        say(f"a store of 2^{settings.model.bits} rows is written")
        bodies = {kind: requests(Path(directory), fields.load(schema), kind, seed) for kind in ("100", "1000", "strings")}
        plain_port, empty_port = free_port(), free_port()
        plain = stack.enter_context(server("plain", str(settings.store_dir), schema, str(plain_port)))
        stack.enter_context(server("empty", str(empty_port)))
        scorer = stack.enter_context(scorer_of(settings))
        third, why_no_third = _third(stack, loaded.settings.var, settings, schema, bodies["100"], Path(directory), say)
        load = stack.enter_context(Load())
        figures: dict[str, list[float]] = {}
        histograms: dict[str, list[int]] = {}
        say("all servers answer")

        agree = _difference(plain_port, settings.score.port, bodies["100"])
        for turn in range(rounds):
            if third is not None:
                for name, value in _of_third(load, third, seconds, seed + turn).items():
                    figures.setdefault(name, []).append(value)
            servers = {plain_port: [plain], settings.score.port: [scorer, *scorer.children()]}
            round_figures, counts = _round(load, trainer, servers, empty_port, bodies, seconds, seed + turn)
            for name, value in round_figures.items():
                figures.setdefault(name, []).append(value)
            for name, count in counts.items():
                histograms[name] = [one + more for one, more in zip(histograms.get(name, [0] * len(count)), count, strict=True)]
            say(f"round {turn + 1} of {rounds} is over")
        served = _publish_to_served(load, trainer, settings, bodies["100"], seconds, seed)
        table_mb = (1 << settings.model.bits) * (1 + settings.model.factors) * 4 / 1e6
        pss = [process.memory_full_info().pss / 1e6 for process in workers(scorer)]
        found: dict[str, Any] = {name: statistics.median(values) for name, values in figures.items()}
        found |= served | {
            "rounds": rounds, "largest_difference_to_fp32": agree, "worker_pss_mb": max(pss), "table_mb": table_mb,
            "worker_mb_beyond_table": max(pss) - table_mb, "workers": len(pss), "precision": settings.score.precision,
            "failed_requests": load.failed, "each_round": figures, "histograms": histograms, "histogram_edges_ms": EDGES,
            "cores": os.cpu_count(), "load_average": os.getloadavg()[0],
        }
    say(f"cold start with 2^{COLD_BITS} rows")
    found["cold_start_s"] = _cold_start(loaded, seed)
    if third is None:
        found |= {"mlserver_requests_per_s": None, "mlserver_why_not": why_no_third}
    else:
        found["of_mlserver"] = statistics.median(
            ours / theirs for ours, theirs in zip(figures["requests_per_s"], figures["mlserver_requests_per_s"], strict=True)
        )
    equal = ("largest difference to fp32", "largest_difference_to_fp32", False, MOST_DIFFERENT[found["precision"]])
    found["bars"] = [
        {"what": what, "asked": bar, "seen": found[key], "held": found[key] >= bar if more else found[key] <= bar}
        for what, key, more, bar in (*BARS, equal) if key in found
    ]
    return found


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as one: medians of their figures, and with each bar what every run has seen. Latencies are added up."""
    figures = [{key: value for key, value in run.items() if isinstance(value, int | float)} for run in runs]
    found: dict[str, Any] = runs[-1] | {
        key: statistics.median_high(seen) if isinstance((seen := [figure[key] for figure in figures])[0], int)
        else statistics.median(seen) for key in set.intersection(*map(set, figures))
    }
    found["histograms"] = {
        name: [sum(counts) for counts in zip(*(run["histograms"][name] for run in runs), strict=True)]
        for name in runs[0]["histograms"]
    }
    found["runs"] = list(runs)
    found["bars"] = []
    for bars in zip(*(run["bars"] for run in runs), strict=False):
        seen = [bar["seen"] for bar in bars]
        held = sum(bar["held"] for bar in bars) * 2 > len(bars)  # as the median does, of an odd number
        found["bars"].append(bars[0] | {"seen": statistics.median(seen), "held": held, "each_run": seen})
    return found


def table(found: Mapping[str, Any]) -> str:
    """For a person."""
    cpu = (
        f"of a core per request: {found['cpu_ms_per_request']:.2f} ms, plain grpcio {found['plain_cpu_ms_per_request']:.2f}, "
        f"load generator {found['load_generator_cpu_ms_per_request']:.2f}; load average {found['load_average']:.1f}, "
        f"{found['failed_requests']:,} requests refused"
    )
    head = (
        f"{found['requests_per_s']:,.0f} requests/s of 100 items with {found['workers']} workers, plain grpcio "
        f"{found['plain_grpcio_requests_per_s']:,.0f}; at half of that p50 {found['p50_ms']:.2f}, p99 {found['p99_ms']:.2f} ms"
    )
    empty = (
        f"a server that computes nothing, at the same rate: p50 {found['empty_p50_ms']:.2f}, p99 {found['empty_p99_ms']:.2f}, "
        f"p99 {found['empty_reload_p99_ms']:.2f} ms while versions of 20,000 rows are published"
    )
    return "\n".join([head, cpu, empty, *(
        f"{bar['seen']:>9.3g}  asked {bar['asked']:>6g}  {'ok  ' if bar['held'] else 'MISS'}  {bar['what']}{_spread(bar)}"
        for bar in found["bars"]
    ), _said_of_third(found)])


def _spread(bar: Mapping[str, Any]) -> str:
    each = bar.get("each_run", ())
    return f" (runs: {', '.join(f'{seen:.3g}' for seen in each)})" if len(each) > 1 else ""


def picture(found: Mapping[str, Any]) -> str:
    """Latencies of all rounds together, as SVG."""
    return drawn("Slates of 100 at half of saturation, while versions land", found["histograms"])


def missed(found: Mapping[str, Any]) -> str:
    """Which bars do not hold; empty = all do."""
    return "; ".join(f"{bar['what']}: {bar['seen']:.3g}, asked {bar['asked']:g}" for bar in found["bars"] if not bar["held"])


def _round(
    load: Load, trainer: Writer, servers: Mapping[int, Sequence[psutil.Process]], empty_port: int, bodies: Mapping[str, Path],
    seconds: float, seed: int,
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Everything once, one after the other. servers: port → its processes, the plain one's first. empty_port: of a server that
    computes nothing. Returns the figures, and how many requests took how long in those loads whose latency counts."""
    plain_port, port = servers
    plain, plain_cpu_ms = _with_cpu(servers[plain_port], lambda: load.run(plain_port, bodies["100"], seconds, seed))
    ours, cpu_ms = _with_cpu(servers[port], lambda: load.run(port, bodies["100"], seconds, seed))
    strings = load.run(port, bodies["strings"], seconds, seed)
    rate = ours["requests_per_s"] / 2
    idle = load.run(port, bodies["100"], seconds, seed, rate)
    empty = load.run(empty_port, bodies["100"], seconds, seed, rate)
    large = load.run(port, bodies["1000"], seconds, seed, 30.0)
    with trainer.publishing(20_000):
        reload = load.run(port, bodies["100"], seconds, seed, rate)
        empty_reload = load.run(empty_port, bodies["100"], seconds, seed, rate)
        saturated = load.run(port, bodies["100"], seconds, seed)
    again = load.run(port, bodies["100"], seconds, seed)
    with trainer.publishing(100_000):
        reload_100k = load.run(port, bodies["100"], seconds, seed, rate)
    plain_idle = load.run(plain_port, bodies["100"], seconds, seed, plain["requests_per_s"] / 2)
    latencies = {
        "no versions": idle, "20,000 rows every 0.5 s": reload, "100,000 rows every 0.5 s": reload_100k,
        "plain grpcio, at half of its own rate": plain_idle,
    }
    figures = {
        "requests_per_s": ours["requests_per_s"], "plain_grpcio_requests_per_s": plain["requests_per_s"],
        "of_plain": ours["requests_per_s"] / plain["requests_per_s"],
        "p50_ms": idle["p50_ms"], "p99_ms": idle["p99_ms"], "worst_ms": idle["worst_ms"],
        "plain_p50_ms": plain_idle["p50_ms"], "plain_p99_ms": plain_idle["p99_ms"],
        "empty_p50_ms": empty["p50_ms"], "empty_p99_ms": empty["p99_ms"], "empty_reload_p99_ms": empty_reload["p99_ms"],
        "p50_ms_1000": large["p50_ms"], "p99_ms_1000": large["p99_ms"],
        "strings_requests_per_s": strings["requests_per_s"],
        "strings_of_ready": strings["requests_per_s"] / ours["requests_per_s"],
        "reload_p99_ms": reload["p99_ms"], "reload_p99_above_ms": reload["p99_ms"] - idle["p99_ms"],
        "reload_worst_of_idle": reload["worst_ms"] / idle["worst_ms"],
        "reload_throughput": saturated["requests_per_s"] / statistics.mean((ours["requests_per_s"], again["requests_per_s"])),
        "reload_100k_p99_ms": reload_100k["p99_ms"], "reload_100k_p99_above_ms": reload_100k["p99_ms"] - idle["p99_ms"],
        "cpu_ms_per_request": cpu_ms, "plain_cpu_ms_per_request": plain_cpu_ms,
        "load_generator_cpu_ms_per_request": 1e3 * ours["cpu_s"] / ours["all_requests"],
    }
    return figures, {name: one["histogram"] for name, one in latencies.items()}


def _third(
    stack: ExitStack, var: Path, settings: Settings, schema: str, bodies: Path, directory: Path, say: Say
) -> tuple[MlServer | None, str]:
    """MLServer with the same model, or None and why not: it is the only one that needs to be installed."""
    try:
        home = mlserver.install(var, say)
        model = PlainModel.of_store(settings.store_dir, directory / "secondary", schema, FIELDS)
        config = {key.removeprefix("model."): value for key, value in MODEL.items()}
        return stack.enter_context(mlserver.serving(home, model, config, bodies, directory / "mlserver")), ""
    except PeerError as wrong:
        say(f"without MLServer: {wrong}")
        return None, str(wrong)


def _of_third(load: Load, third: MlServer, seconds: float, seed: int) -> dict[str, float]:
    """MLServer's figures: at saturation, at half of its own rate, and while it loads its model again every two seconds."""
    def run(rate: float | None = None) -> dict[str, Any]:
        return load.run(third.port, third.bodies, seconds, seed, rate, mlserver.CALL)

    most, cpu_ms = _with_cpu([third.process], run)
    idle = run(most["requests_per_s"] / 2)
    with third.loading():
        reload = run(most["requests_per_s"] / 2)
    return {
        "mlserver_requests_per_s": most["requests_per_s"], "mlserver_cpu_ms_per_request": cpu_ms,
        "mlserver_p50_ms": idle["p50_ms"], "mlserver_p99_ms": idle["p99_ms"], "mlserver_reload_p99_ms": reload["p99_ms"],
    }


def _said_of_third(found: Mapping[str, Any]) -> str:
    if found["mlserver_requests_per_s"] is None:
        return f"MLServer, of whose requests/s five times are asked, is not in this run: {found['mlserver_why_not']}"
    return (
        f"MLServer: {found['mlserver_requests_per_s']:,.0f} requests/s, {found['mlserver_cpu_ms_per_request']:.2f} ms of "
        f"a core each; at half of that p50 {found['mlserver_p50_ms']:.2f}, p99 {found['mlserver_p99_ms']:.2f} ms, and "
        f"{found['mlserver_reload_p99_ms']:.1f} ms while it loads its model every two seconds"
    )


def _with_cpu(processes: Sequence[psutil.Process], run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """What a load found, and the milliseconds of a core that each of its requests took in these processes, warm-up counted:
    on a machine that others use too it says more than requests per second."""
    def spent_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = spent_s()
    found = run()
    return found, 1e3 * (spent_s() - before) / max(1, found["all_requests"])


def _difference(plain_port: int, port: int, bodies: Path) -> float:
    """The largest difference between the probabilities of both servers, over all slates; the plain one computes in float32."""
    kept = np.load(bodies)
    answers = []
    for at in (plain_port, port):
        with ScorerClient(f"127.0.0.1:{at}") as client:
            answers.append([
                probability for one in np.split(kept["data"], np.cumsum(kept["sizes"])[:-1])
                for probability in client.ask(scoring_pb2.ScoreRequest.FromString(one.tobytes()), 10.0).probability
            ])
    return float(np.abs(np.array(answers[0]) - np.array(answers[1])).max())


def _publish_to_served(
    load: Load, trainer: Writer, settings: Settings, bodies: Path, seconds: float, seed: int
) -> dict[str, float]:
    """From the version's making to when every worker has it and has answered from it, at a light load."""
    file = settings.metrics_dir / "freshness.jsonl"
    before = len(list(journal.read(file)))
    with trainer.publishing(10_000):
        load.run(settings.score.port, bodies, max(seconds, 10.0), seed, 300.0)
    waited = [(row["served_us"] - row["published_us"]) / 1e3 for row in list(journal.read(file))[before:]]
    if not waited:
        raise BenchFailed("no version was served")
    p50, p99 = (float(np.quantile(waited, share)) for share in (0.5, 0.99))
    return {"publish_to_served_p50_ms": p50, "publish_to_served_p99_ms": p99}


def _cold_start(loaded: Loaded, seed: int) -> float:
    """From the process's start to the first answer."""
    with TemporaryDirectory(prefix="freshet-bench-") as directory:
        model = {**MODEL, "model.bits": COLD_BITS}
        settings = settings_for(Path(directory) / "var", schema_in(Path(directory)), free_port(), loaded, model)
        writer = Writer(settings, seed)
        writer.publish(None)
        writer.close()
        began = time.perf_counter()
        with scorer_of(settings), ScorerClient(f"127.0.0.1:{settings.score.port}") as client:
            client.score({}, [{"id": "first"}], timeout_s=30)
            return time.perf_counter() - began
