"""`python -m infra.bench.models`: the three graphs alone, and the memory of the pipeline with every window full. Prints
JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np
import psutil
from opentelemetry.metrics import NoOpMeterProvider

from infra.bench.events import event_id, user_id
from pipeline.app import MODELS, trained
from pipeline.backends.onnx import OnnxBackend
from pipeline.features.layout import BASELINE_SIZE, EVIDENCE_VERSION, FEATURE_COUNT, SAMPLE_SIZE, STEP_SIZE, WINDOW
from pipeline.runners.chain import Chain
from pipeline.scoring import ANOMALY
from pipeline.settings import PipelineSettings
from pipeline.stages.deserialize import EvidenceLayout
from pipeline.stages.monitor import Monitor
from pipeline.stages.serialize import AlertSerializer
from pipeline.state.windows import UserWindows

BATCH = 1024
_RUNS = 30


def alone(settings: PipelineSettings) -> dict[str, float]:
    """Milliseconds for 1,024 events: the sum over the graphs of the median run, on the clock and of processor time."""
    backend = OnnxBackend(settings.models, MODELS, settings.model_threads)
    rng = np.random.default_rng(0)
    window = rng.normal(size=(BATCH, WINDOW, STEP_SIZE)).astype(np.float32)
    window[:, :, 0] = 1.0
    features = rng.normal(size=(BATCH, FEATURE_COUNT)).astype(np.float32)
    total = {"alone_ms": 0.0, "alone_cpu_ms": 0.0}
    for name in MODELS:
        inputs = {"features": features} if name == ANOMALY else {"window": window}
        clock, cpu = [], []
        for _ in range(_RUNS):
            start, start_cpu = time.perf_counter(), time.thread_time()
            backend.run(name, inputs)
            clock.append(time.perf_counter() - start)
            cpu.append(time.thread_time() - start_cpu)
        total["alone_ms"] += statistics.median(clock) * 1000
        total["alone_cpu_ms"] += statistics.median(cpu) * 1000
    return total


def memory(settings: PipelineSettings, users: int) -> dict[str, float]:
    """Resident mebibytes of the pipeline's parts with the window of every user full."""
    monitor = Monitor(NoOpMeterProvider().get_meter("bench"))
    judge = trained(settings, monitor)
    windows = UserWindows(users, STEP_SIZE, BATCH)
    layout = EvidenceLayout(EVIDENCE_VERSION, SAMPLE_SIZE, BASELINE_SIZE)
    chain = Chain(judge.scorer, windows, layout, AlertSerializer("bench", judge.models), monitor, 65_536)
    chain.warm_up(BATCH)
    steps = np.ones((BATCH, STEP_SIZE), np.float32)
    unwanted = np.zeros(BATCH, np.bool_)
    for first in range(0, users, BATCH):
        names = [user_id(number) for number in range(first, min(users, first + BATCH))]
        size = len(names)
        for step in range(WINDOW):
            events = [event_id(step, 0, first + row) for row in range(size)]
            windows.push(names, events, np.zeros(size, np.int32), steps[:size], unwanted[:size])
    resident = psutil.Process().memory_info().rss
    return {"users": windows.users, "rss_mib": resident / 2**20, "windows_mib": windows.memory_bytes / 2**20}


def main() -> None:
    """Measure what the argument names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["alone", "memory"])
    parser.add_argument("--users", type=int, default=100_000)
    arguments = parser.parse_args()
    settings = PipelineSettings()
    result = alone(settings) if arguments.what == "alone" else memory(settings, arguments.users)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
