"""The three networks and their export. Each is small, because each runs for every event on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.features.layout import FEATURE_COUNT, STEP_SIZE, WINDOW

OPSET = 17
LSTM_HIDDEN = 24
HEADS = 4


class AutoEncoder(nn.Module):
    """Rebuilds the 256 features of genuine behaviour through a bottleneck of 32.

    The bottleneck is bounded (tanh): what lies outside genuine behaviour cannot be rebuilt by extrapolation, so that its error grows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(FEATURE_COUNT, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.Tanh()
        )
        self.decode = nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, FEATURE_COUNT)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, 256] to [N, 256]."""
        rebuilt: Tensor = self.decode(self.encode(features))
        return rebuilt


class SequenceNetwork(nn.Module):
    """An LSTM over the last 50 steps, oldest first.

    It has no biases: a row of zeros leaves a zero state at zero, so that windows shorter than 50 need no mask. The step's first value is 1
    and takes the biases' place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(STEP_SIZE, LSTM_HIDDEN, bias=False, batch_first=True)
        self.head = nn.Linear(LSTM_HIDDEN, 1)

    def forward(self, window: Tensor) -> Tensor:
        """[N, 50, D] to log odds [N, 1]."""
        states, _ = self.lstm(window)
        odds: Tensor = self.head(states[:, -1])
        return odds

    def every_step(self, window: Tensor) -> Tensor:
        """Log odds at every step [N, T], for training."""
        states, _ = self.lstm(window)
        odds: Tensor = self.head(states)[..., 0]
        return odds


class PatternNetwork(nn.Module):
    """One transformer layer of which only the newest step's attention is computed, with keys and values absorbed into the query and output.

    Each head compares the newest step with every step of the window (a learnt bilinear form and a learnt weight for age), averages the steps by it, and a small
    feed-forward network reads the averages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(STEP_SIZE, HEADS * STEP_SIZE)
        self.age = nn.Parameter(torch.zeros(HEADS, WINDOW))
        self.read = nn.Sequential(nn.Linear((HEADS + 1) * STEP_SIZE, 48), nn.GELU(approximate="tanh"), nn.Linear(48, 1))

    def forward(self, window: Tensor) -> Tensor:
        """[N, 50, D] to log odds [N, 1]."""
        newest = window[:, -1]
        query = self.query(newest).view(-1, HEADS, STEP_SIZE)
        fit = query @ window.transpose(1, 2) * STEP_SIZE**-0.5 + self.age
        fit = fit + (window[:, :, 0] - 1.0).unsqueeze(1) * 1e4
        mean = fit.softmax(-1) @ window
        odds: Tensor = self.read(torch.cat([mean.flatten(1), newest], 1))
        return odds
