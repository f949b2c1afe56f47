"""The model repository as it is shipped, and repositories that must not be loaded."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.app import MODELS
from pipeline.backends import manifest
from pipeline.backends.manifest import ModelRepositoryError
from pipeline.backends.onnx import OnnxBackend
from pipeline.settings import PipelineSettings

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = PipelineSettings().models


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    copy = tmp_path / "models"
    shutil.copytree(SHIPPED, copy)
    manifest.write(copy)
    return copy


def test_the_shipped_files_are_those_of_the_manifest() -> None:
    """Fails after training until `python -m pipeline.backends.manifest pipeline/models` was run."""
    files = [path for path in SHIPPED.rglob("*") if path.suffix in {".onnx", ".npz"}]
    manifest.verify(SHIPPED, [path.relative_to(SHIPPED).as_posix() for path in files])


def test_models_run_and_say_how_long(repository: Path) -> None:
    seen: list[tuple[str, int]] = []
    backend = OnnxBackend(repository, MODELS, observe=lambda name, rows, _s, _c: seen.append((name, rows)))
    features = backend.run("anomaly-detection", {"features": np.zeros((3, 256), np.float32)})
    assert features["reconstruction"].shape == (3, 256)
    window = np.zeros((2, 50, 32), np.float32)
    for name in MODELS[1:]:
        assert backend.run(name, {"window": window})["log_odds"].shape == (2, 1)
    assert seen == list(zip(MODELS, (3, 2, 2), strict=True))
    with pytest.raises(KeyError):
        backend.run("unknown", {})


@pytest.mark.parametrize("damage", ["changed", "missing", "unnamed", "no manifest", "other name", "other tensor"])
def test_what_is_not_the_trained_model_is_not_loaded(repository: Path, damage: str) -> None:
    model, config = repository / MODELS[0] / "1" / "model.onnx", repository / MODELS[0] / "config.pbtxt"
    match damage:
        case "changed":
            model.write_bytes(model.read_bytes() + b"\0")
        case "missing":
            model.unlink()
        case "unnamed":
            (repository / "manifest.json").write_text('{"sha256": {}}')
        case "no manifest":
            (repository / "manifest.json").unlink()
        case "other name":
            config.write_text(config.read_text().replace(MODELS[0], "something-else"))
        case "other tensor":
            config.write_text(config.read_text().replace('"features"', '"pixels"'))
    with pytest.raises(ModelRepositoryError, match=r"restore|missing|manifest|must name|export"):
        OnnxBackend(repository, MODELS)
