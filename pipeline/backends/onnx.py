"""The `cpu` profile: ONNX Runtime in this process, over a model repository laid out as Triton reads it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Protocol

import onnxruntime  # type: ignore[import-untyped] # ships no types

from pipeline.backends.manifest import ModelRepositoryError, verify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


class RunObserver(Protocol):
    """Told of every model run: how many rows, seconds on the clock, seconds of this thread's processor time."""

    def __call__(self, model: str, rows: int, seconds: float, cpu_seconds: float) -> None:
        """Take note of one run."""


class OnnxBackend:
    """Runs the models of a repository: `<name>/config.pbtxt` and `<name>/1/model.onnx`.

    With one thread a model runs on the caller's thread and without the interpreter's lock, so that reading and writing
    go on meanwhile.

    Raises:
        ModelRepositoryError: a model is missing, does not match its configuration or is not what the manifest names.
    """

    def __init__(
        self, repository: Path, names: Sequence[str], threads: int = 1, observe: RunObserver | None = None
    ) -> None:
        verify(repository, [f"{name}/1/model.onnx" for name in names])
        self._observe = observe
        self._sessions = {name: _open(repository / name, threads) for name in names}
        self._outputs = {name: [o.name for o in session.get_outputs()] for name, session in self._sessions.items()}

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """The model's outputs by name. Raises KeyError when there is no such model."""
        session, outputs = self._sessions[name], self._outputs[name]
        clock, cpu = time.perf_counter(), time.thread_time()
        results: list[NDArray[np.generic]] = session.run(outputs, dict(inputs))
        if self._observe is not None:
            rows = len(next(iter(inputs.values())))
            self._observe(name, rows, time.perf_counter() - clock, time.thread_time() - cpu)
        return dict(zip(outputs, results, strict=True))


def _open(folder: Path, threads: int) -> onnxruntime.InferenceSession:
    configuration = folder / "config.pbtxt"
    try:
        text = configuration.read_text()
    except OSError as error:
        raise ModelRepositoryError(
            f"no model at {folder}: point BEHAVIORGUARD_MODELS to the model repository"
        ) from error
    declared = re.search(r'^name:\s*"([^"]+)"', text, re.MULTILINE)
    if declared is None or declared.group(1) != folder.name or 'platform: "onnxruntime_onnx"' not in text:
        raise ModelRepositoryError(f"{configuration} must name {folder.name} and the platform onnxruntime_onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool takes the cores from the broker and from our own reading and writing threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(folder / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    tensors = {tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())}
    named = set(re.findall(r'^\s+name:\s*"([^"]+)"', text, re.MULTILINE))
    if tensors != named:
        raise ModelRepositoryError(
            f"{configuration} names {sorted(named)}, the model has {sorted(tensors)}: export the model again"
        )
    return session
