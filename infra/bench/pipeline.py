"""The pipeline end to end through a broker: latency at a steady rate, highest rate against a bare relay, time of the
models, memory.

Every part is a process of its own, as in production: broker, load generator, pipeline, measuring consumer. They share
this machine's cores, so ratios say more than absolute figures.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import psutil

from infra.kafka.topics import THREAT_TOPICS, Topic, ensure_topics
from infra.settings import StackSettings
from infra.stack.errors import StackError
from infra.stack.kafka import ApacheBroker, Broker, BrokerOptions, EmbeddedBroker, apache_obstacle, fetch_apache
from infra.stack.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
BrokerKind = Literal["auto", "apache", "embedded"]
_START_SECONDS = 60.0
_WARM_SECONDS = 5
_PARTITIONS = 8
_BACKLOG = "bench-backlog"
_DRAINED = "bench-drained"
_RELAYED = "bench-relayed"


@dataclass(frozen=True)
class Plan:
    """What to measure. `rate` in events a second, `seconds` of it, `users` that the events spread over, `backlog`
    events to drain."""

    rate: int = 10_000
    seconds: int = 30
    users: int = 100_000
    backlog: int = 600_000
    broker: BrokerKind = "auto"
    pipelines: int = 1


class BenchFailed(RuntimeError):  # noqa: N818 - it is an outcome
    """A part of the measurement ended or hung; the message says which and where its log is."""


class Bench:
    """One run of the measurement, with a broker of its own on free ports."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._folder = Path(tempfile.mkdtemp(prefix="behaviorguard-bench-"))
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "BEHAVIORGUARD_PIPELINE_NODE": "bench"}

    def run(self) -> dict[str, Any]:
        """Measure everything; the answer's keys are those of `behaviorguard bench pipeline --json`.

        Raises:
            BenchFailed: a part did not work.
            StackError: the broker did not start.
        """
        load_before = os.getloadavg()[0]
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._say("the models alone, and memory")
            alone = self._measure("infra.bench.models", ["alone"], _START_SECONDS)
            memory = self._measure("infra.bench.models", ["memory", "--users", str(self._plan.users)], 300)
            broker = stack.enter_context(self._broker())
            self._environment["BEHAVIORGUARD_KAFKA_BOOTSTRAP"] = broker.bootstrap()
            steady = self._steady()
            self._say(f"filling a backlog of {self._plan.backlog:,} events")
            series = secrets.randbelow(2**32)
            start = time.time() + 1.0
            load = self._load(series, start, self._plan.backlog, 0, _BACKLOG)
            self._result(load, "load", 180)
            relay = self._drain("relay", series, start, _RELAYED)
            drained = self._drain("pipeline", series, start, _DRAINED)
        return self._answer(broker, load_before, alone, memory, steady, relay, drained)

    def _answer(
        self, broker: Broker, load_before: float, alone: dict[str, Any], memory: dict[str, Any], steady: dict[str, Any],
        relay: dict[str, Any], drained: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        plan = self._plan
        inside = drained["models"]
        return {
            "rate": round(steady["load"]["per_second"]),
            "seconds": plan.seconds,
            "p50_ms": round(steady["p50_ms"], 1),
            "p99_ms": round(steady["p99_ms"], 1),
            "lost": steady["lost"] + drained["lost"],
            "max_rate": round(drained["per_second"]),
            "relay_max_rate": round(relay["per_second"]),
            "relay_ratio": round(drained["per_second"] / relay["per_second"], 3) if relay["per_second"] else None,
            "model_ratio": round(inside["cpu_ms"] / alone["alone_cpu_ms"], 2),
            "broker": broker.label,
            "p999_ms": round(steady["p999_ms"], 1),
            "max_ms": round(steady["max_ms"], 1),
            "duplicates": steady["duplicates"] + drained["duplicates"],
            "generator_late_ms": round(steady["load"]["late_ms"], 1),
            "pipeline_cores_at_rate": round(steady["cores"], 2),
            "model_ms_per_1024": round(inside["ms"], 1),
            "model_cpu_ms_per_1024": round(inside["cpu_ms"], 1),
            "models_alone_ms_per_1024": round(alone["alone_ms"], 1),
            "model_ratio_clock": round(inside["ms"] / alone["alone_ms"], 2),
            "users": memory["users"],
            "rss_mib": round(memory["rss_mib"]),
            "windows_mib": round(memory["windows_mib"]),
            "backlog": plan.backlog,
            "pipelines": plan.pipelines,
            "cores": os.cpu_count(),
            "load_average_before": round(load_before, 2),
        }

    # The parts.

    @contextmanager
    def _broker(self) -> Iterator[Broker]:
        settings = StackSettings()
        options = BrokerOptions(
            self._folder / "kafka", free_port(), free_port(), settings.cache, self._folder / "kafka.log"
        )
        apache = self._plan.broker == "apache" or (
            self._plan.broker == "auto" and apache_obstacle(settings.cache) is None
        )
        if apache:
            settings.cache.mkdir(parents=True, exist_ok=True)
            fetch_apache(settings.cache)
        broker: Broker = ApacheBroker(options) if apache else EmbeddedBroker(options)
        self._say(f"broker: {broker.label}")
        broker.start(time.monotonic() + _START_SECONDS)
        try:
            extra = [
                Topic(name, partitions=8, retention_ms=3_600_000, compression="lz4")
                for name in (_BACKLOG, _DRAINED, _RELAYED)
            ]
            ensure_topics(broker.bootstrap(), [*THREAT_TOPICS, *extra])
            yield broker
        finally:
            broker.stop()

    def _steady(self) -> dict[str, Any]:
        """Latency and loss at the planned rate, of processes that have been working for a few seconds."""
        plan = self._plan
        events, series = plan.rate * plan.seconds, secrets.randbelow(2**32)
        with self._pipeline("threat-events", "threat-alerts") as pipeline:
            self._say("warming up")
            warm = self._load(
                secrets.randbelow(2**32), time.time() + 1.5, plan.rate * _WARM_SECONDS, plan.rate, "threat-events"
            )
            self._result(warm, "load", 90)
            start = time.time() + 3.0
            probe = self._probe("threat-alerts", series, start, events)
            load = self._load(series, start, events, plan.rate, "threat-events")
            self._say(f"{plan.rate:,} events/s for {plan.seconds} s")
            cpu = pipeline.cpu_seconds()
            sent = self._result(load, "load", plan.seconds + 90)
            cores = (pipeline.cpu_seconds() - cpu) / plan.seconds
            result = self._result(probe, "probe", 90)
        if sent["unsent"]:
            raise BenchFailed(f"the broker did not take {sent['unsent']} events of the load")
        return result | {"load": sent, "cores": cores}

    def _drain(self, who: str, series: int, start: float, topic: str) -> dict[str, Any]:
        """How fast the backlog goes through the relay or the pipeline."""
        self._say(f"draining the backlog through the {who}")
        probe = self._probe(topic, series, start, self._plan.backlog)
        if who == "relay":
            environment = self._topics(_BACKLOG, topic) | {"BEHAVIORGUARD_PIPELINE_GROUP": "bench-relay"}
            relay = self._start("infra.bench.relay", ["--events", str(self._plan.backlog)], environment)
            result = self._result(probe, "probe", 180)
            self._finish(relay, "relay", 60)
            return result
        with self._pipeline(_BACKLOG, topic) as pipeline:
            result = self._result(probe, "probe", 240)
            return result | {"models": pipeline.models()}

    @contextmanager
    def _pipeline(self, source: str, target: str) -> Iterator[PipelineGroup]:
        children: list[PipelineChild] = []
        try:
            for _ in range(self._plan.pipelines):
                port = free_port()
                environment = self._topics(source, target) | {
                    "BEHAVIORGUARD_PIPELINE_PORT": str(port),
                    "BEHAVIORGUARD_PIPELINE_GROUP": f"bench-{source}",
                }
                children.append(PipelineChild(self._start("pipeline", [], environment), port))
            group = PipelineGroup(children)
            group.wait_healthy(lambda: self._last_words("pipeline"))
            yield group
        finally:
            for child in children:
                child.stop()

    def _topics(self, source: str, target: str) -> dict[str, str]:
        return {"BEHAVIORGUARD_EVENTS_TOPIC": source, "BEHAVIORGUARD_ALERTS_TOPIC": target}

    def _probe(self, topic: str, series: int, start: float, events: int) -> subprocess.Popen[str]:
        arguments = ["--topic", topic, "--series", str(series), "--start", repr(start), "--events", str(events)]
        child = self._start("infra.bench.probe", ["--bootstrap", self._bootstrap, *arguments], {})
        if child.stdout is None or child.stdout.readline() != "ready\n":
            raise BenchFailed(f"the probe did not start: {self._last_words('infra.bench.probe')}")
        return child

    def _load(self, series: int, start: float, events: int, rate: int, topic: str) -> subprocess.Popen[str]:
        arguments = ["--topic", topic, "--series", str(series), "--start", repr(start), "--events", str(events)]
        more = ["--rate", str(rate), "--users", str(self._plan.users)]
        return self._start("infra.bench.load", ["--bootstrap", self._bootstrap, *arguments, *more], {})

    @property
    def _bootstrap(self) -> str:
        return self._environment["BEHAVIORGUARD_KAFKA_BOOTSTRAP"]

    # Child processes.

    def _start(self, module: str, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        with (self._folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT, env=self._environment | environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def _measure(self, module: str, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
        return self._result(self._start(module, arguments, {}), module, seconds)

    def _result(self, child: subprocess.Popen[str], name: str, seconds: float) -> dict[str, Any]:
        """The JSON that a child prints before it ends."""
        output = self._finish(child, name, seconds)
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result

    def _finish(self, child: subprocess.Popen[str], name: str, seconds: float) -> str:
        try:
            output, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise BenchFailed(f"{name} did not end within {seconds:g} s: {self._last_words(name)}") from None
        if child.returncode:
            raise BenchFailed(f"{name} failed: {self._last_words(name)}")
        return output

    def _last_words(self, name: str) -> str:
        logs = sorted(self._folder.glob(f"*{name}.log"))
        lines = logs[0].read_text(errors="replace").strip().splitlines() if logs else []
        return lines[-1][-600:] if lines else "it said nothing"


class Totals(NamedTuple):
    """Events that went through the models, each counted once a model; seconds on the clock and of processor time."""

    events: float
    seconds: float
    cpu_seconds: float


class PipelineGroup:
    """The pipeline processes that share the partitions."""

    def __init__(self, children: Sequence[PipelineChild]) -> None:
        self._children = children

    def wait_healthy(self, last_words: Callable[[], str]) -> None:
        """Wait until every process has partitions and none is left over.

        Raises:
            BenchFailed: one ended, or the time is up.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if any(child.ended for child in self._children) or time.monotonic() > deadline:
                raise BenchFailed(f"the pipeline did not start: {last_words()}")
            shares = [child.partitions() for child in self._children]
            if all(shares) and sum(shares) == _PARTITIONS:
                return
            threading.Event().wait(0.05)

    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        return sum(child.cpu_seconds() for child in self._children)

    def models(self) -> dict[str, float]:
        """Milliseconds inside the models for 1,024 events, on the clock and of processor time."""
        events, seconds, cpu_seconds = map(sum, zip(*(child.model_totals() for child in self._children), strict=True))
        batches = events / 3 / 1024
        return {"ms": seconds / batches * 1000, "cpu_ms": cpu_seconds / batches * 1000}


class PipelineChild:
    """A running pipeline process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self._port = port

    @property
    def ended(self) -> bool:
        """Whether it ended."""
        return self._process.poll() is not None

    def partitions(self) -> int:
        """Partitions that it works on; 0 while it is not healthy."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5) as answer:
                return len(json.loads(answer.read())["partitions"])
        except (urllib.error.URLError, OSError):
            return 0

    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def model_totals(self) -> Totals:
        """Work of the models so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
            text = answer.read().decode()

        def total(name: str) -> float:
            found = re.findall(rf"^behaviorguard_pipeline_model_{name}_total{{[^}}]*}} (\S+)$", text, re.MULTILINE)
            return sum(map(float, found))

        return Totals(total("events"), total("duration_seconds"), total("cpu_seconds"))

    def stop(self) -> None:
        """Ask it to end, then make it."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def run(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as planned. Raises BenchFailed, StackError."""
    return Bench(plan, say).run()


__all__ = ["BenchFailed", "Plan", "StackError", "run"]
