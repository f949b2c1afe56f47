"""Wiring: settings in, a running pipeline out."""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from pipeline.backends.manifest import ModelRepositoryError
from pipeline.backends.onnx import OnnxBackend
from pipeline.features.layout import BASELINE_SIZE, EVIDENCE_VERSION, SAMPLE_SIZE, STEP_SIZE
from pipeline.parameters import Parameters
from pipeline.runners import kafka
from pipeline.runners.chain import Chain, ModelsFailed, Scorer
from pipeline.runners.health import Endpoint, Health
from pipeline.scoring import ANOMALY, PATTERN, SEQUENCE
from pipeline.scoring import Scorer as TrainedScorer
from pipeline.settings import PipelineSettings
from pipeline.stages.deserialize import EvidenceLayout
from pipeline.stages.monitor import Monitor
from pipeline.stages.serialize import AlertSerializer, ModelVersion
from pipeline.state.windows import UserWindows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

MODELS = (ANOMALY, SEQUENCE, PATTERN)

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""A full batch makes about 15,000 objects that die with it, none in a cycle."""

_log = logging.getLogger(__name__)


class Judge(NamedTuple):
    """What scores, and what alerts say of it."""

    scorer: Scorer
    models: list[ModelVersion]


def trained(settings: PipelineSettings, monitor: Monitor) -> Judge:
    """The trained models of the repository, run in this process.

    Raises:
        ModelRepositoryError: the models are not there, or not the ones that the manifest names.
        FileNotFoundError: the trained parameters are not there.
    """
    parameters = Parameters.load(settings.models)
    backend = OnnxBackend(settings.models, MODELS, settings.model_threads, monitor.model)
    versions = [ModelVersion(name, parameters.version, parameters.model_accuracy[name]) for name in MODELS]
    return Judge(TrainedScorer(backend, parameters), versions)


def serve(
    settings: PipelineSettings,
    stopping: threading.Event,
    judge: Callable[[PipelineSettings, Monitor], Judge] = trained,
) -> None:
    """Run the pipeline until `stopping`.

    Raises:
        ModelsFailed: the models do not work.
        SessionEnded: the broker failed too often in a row.
    """
    registry = CollectorRegistry()
    meters = MeterProvider([PrometheusMetricReader(registry=registry)])
    monitor = Monitor(meters.get_meter("behaviorguard.pipeline"))
    health = Health(monitor.events_per_second)
    scorer, models = judge(settings, monitor)
    serializer = AlertSerializer(settings.pipeline_node, models)
    layout = EvidenceLayout(EVIDENCE_VERSION, SAMPLE_SIZE, BASELINE_SIZE)

    def chain() -> Chain:
        windows = UserWindows(settings.pipeline_users, STEP_SIZE, settings.pipeline_batch_events)
        return Chain(scorer, windows, layout, serializer, monitor, settings.pipeline_max_message_bytes)

    endpoint = Endpoint(settings.pipeline_port, health, registry)
    endpoint.start()
    try:
        first = chain()
        first.warm_up(settings.pipeline_batch_events)
        _log.info(
            "reading %s as %s, health on 127.0.0.1:%d", settings.events_topic, settings.pipeline_group, endpoint.port
        )
        with _rare_collections():
            kafka.run(settings, chain, health, monitor, stopping)
    finally:
        endpoint.stop()
        meters.shutdown()


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Have the cycle collector look seldom, and never at what is there already: with Python's defaults it runs many
    times a batch, finds nothing, and costs a tenth of the time and pauses of 20 ms."""
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def main(judge: Callable[[PipelineSettings, Monitor], Judge] = trained) -> int:
    """Run the pipeline with the environment's settings until SIGTERM or SIGINT; the exit status."""
    try:
        settings = PipelineSettings()
    except ValidationError as error:
        for problem in error.errors():
            name = "BEHAVIORGUARD_" + "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"{name}: {problem['msg']}\n")
        return 2
    _log_to_stderr(settings.log_level)
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        serve(settings, stopping, judge)
    except (ModelRepositoryError, ModelsFailed, FileNotFoundError, kafka.SessionEnded, OSError) as error:
        _log.critical("%s", error)
        return 1
    return 0


class _JsonLines(logging.Formatter):
    """One JSON object a line, as every other service logs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": "pipeline",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
