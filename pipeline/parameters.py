"""Trained parameters beside the three networks: feature scaling, event discriminants, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MODEL_REPOSITORY = "models"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What training found, apart from the networks' weights."""

    version: str = "0"
    accuracy: float = 0.0

    @classmethod
    def load(cls, repository: Path) -> Parameters:
        """Read the parameters from a model repository.

        Raises:
            FileNotFoundError: the repository is not there.
        """
        if not repository.is_dir():
            raise FileNotFoundError(f"no model repository at {repository}: set BEHAVIORGUARD_MODELS to the folder pipeline/models")
        return cls()
