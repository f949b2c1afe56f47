"""The three networks, how they are trained, and their export. Each is small, because each runs for every event on a
CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.features.describe import REGIMES, STEP, regime_of
from pipeline.features.layout import FEATURE_COUNT, STEP_SIZE, WINDOW
from pipeline.stages.autoencoder import errors, odds_of, scale
from pipeline.training.cohort import fit_discriminant
from pipeline.training.described import features_at, windows_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.parameters import Floats
    from pipeline.training.described import Described

OPSET: Final = 17
LSTM_HIDDEN: Final = 24
AT_ONCE: Final = 5
"""Steps that the LSTM reads in one turn; a divisor of the window's length."""
HEADS: Final = 4
ERROR_RIDGE: Final = 1e-2
BOOST: Final = 6.0


class AutoEncoder(nn.Module):
    """Rebuilds the 256 features of genuine behaviour through a bottleneck of 32.

    The bottleneck is bounded (tanh): what lies outside genuine behaviour cannot be rebuilt by extrapolation, so that
    its error grows.
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
    """An LSTM over the last 50 steps, oldest first, read five at a time: ten turns of the LSTM instead of 50 cost a
    third of the time.

    It has no biases: rows of zeros leave a zero state at zero, so that windows shorter than 50 need no mask. The
    step's first value is 1 and takes the biases' place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(AT_ONCE * STEP_SIZE, LSTM_HIDDEN, bias=False, batch_first=True)
        self.head = nn.Linear(LSTM_HIDDEN, 1)

    def forward(self, window: Tensor) -> Tensor:
        """[N, 50, D] to log odds [N, 1]."""
        states, _ = self.lstm(window.reshape(-1, WINDOW // AT_ONCE, AT_ONCE * STEP_SIZE))
        odds: Tensor = self.head(states[:, -1])
        return odds

    def every_step(self, steps: Tensor) -> Tensor:
        """[N, T, D] to log odds at every step [N, T], for training; T is a multiple of five."""
        count, length, size = steps.shape
        # Which steps share a turn depends on where a window ends: one pass for each place of the end.
        padded = torch.cat([steps.new_zeros(count, AT_ONCE - 1, size), steps], 1)
        shifted = torch.cat([padded[:, start : start + length] for start in range(AT_ONCE)])
        states, _ = self.lstm(shifted.reshape(-1, length // AT_ONCE, AT_ONCE * size))
        odds: Tensor = self.head(states)[..., 0]
        return odds.view(AT_ONCE, count, -1).permute(1, 2, 0).reshape(count, length)

    def ignore(self, column: int) -> None:
        """Make a step's value, of which training saw nothing, count for nothing."""
        with torch.no_grad():
            self.lstm.weight_ih_l0[:, column::STEP_SIZE] = 0.0


class PatternNetwork(nn.Module):
    """One transformer layer of which only the newest step's attention is computed.

    Keys and values are absorbed into the query and the output: each head compares the newest step with every step of
    the window (a learnt bilinear form and a learnt weight for age), averages the steps by it, and a small
    feed-forward network reads the averages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(STEP_SIZE, HEADS * STEP_SIZE)
        self.age = nn.Parameter(torch.linspace(-3.0, 0.0, WINDOW)[None] * torch.tensor([0.0, 0.5, 2.0, 6.0])[:, None])
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

    def ignore(self, column: int) -> None:
        """Make a step's value, of which training saw nothing, count for nothing."""
        reader = self.read[0]
        with torch.no_grad():
            self.query.weight[:, column] = 0.0
            self.query.weight[column::STEP_SIZE] = 0.0
            self.query.bias[column::STEP_SIZE] = 0.0
            reader.weight[:, column::STEP_SIZE] = 0.0


@dataclass(frozen=True, slots=True)
class Networks:
    """The three, trained."""

    anomaly: AutoEncoder
    sequence: SequenceNetwork
    pattern: PatternNetwork


@dataclass(frozen=True, slots=True)
class Scaling:
    """What goes with the autoencoder: scaling of the features and weights of the errors (see `Parameters`)."""

    mean: Floats
    spread: Floats
    error_weight: Floats
    error_bias: Floats


def fit(described: Described, seed: int, epochs: int) -> tuple[Networks, Scaling]:
    """Train all three."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    anomaly, scaling = _fit_anomaly(described, random, epochs)
    return Networks(anomaly, _fit_sequence(described, random, epochs), _fit_pattern(described, random, epochs)), scaling


def raw_scores(nets: Networks, scaling: Scaling, described: Described) -> NDArray[np.float64]:
    """Raw log odds of takeover after every event [Q, 50, 3], the window holding all events so far."""
    count = len(described.intruder)
    raw = np.zeros((count, WINDOW, 3))
    with torch.no_grad():
        raw[:, :, 1] = nets.sequence.every_step(torch.from_numpy(described.steps)).numpy()
        for end in range(WINDOW):
            ends, lengths = np.full(count, end), np.full(count, WINDOW)
            window = windows_at(described.steps, ends, lengths)
            raw[:, end, 2] = nets.pattern(torch.from_numpy(window)).numpy()[:, 0]
            scaled = scale(features_at(described, ends, lengths), scaling.mean, scaling.spread)
            rebuilt = nets.anomaly(torch.from_numpy(scaled)).numpy()
            raw[:, end, 0] = odds_of(scaled, rebuilt, scaling.error_weight, scaling.error_bias, regime_of(window))
    return raw


def export(nets: Networks, repository: Path) -> None:
    """Write the three `model.onnx` into a model repository."""
    for name, net, source, target, shape in (
        ("anomaly-detection", nets.anomaly, "features", "reconstruction", (FEATURE_COUNT,)),
        ("sequence-analysis", nets.sequence, "window", "log_odds", (WINDOW, STEP_SIZE)),
        ("behavioral-transformer", nets.pattern, "window", "log_odds", (WINDOW, STEP_SIZE)),
    ):
        folder = repository / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        torch.onnx.export(
            net.eval(),
            (torch.zeros(2, *shape),),
            str(folder / "model.onnx"),
            input_names=[source],
            output_names=[target],
            dynamic_axes={source: {0: "batch"}, target: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _pick(
    described: Described, random: np.random.Generator, rounds: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Random events of random windows: session, last event, length; short windows and first events more often."""
    count = rounds * len(described.intruder)
    session = np.tile(np.arange(len(described.intruder)), rounds)
    ends = np.minimum(np.exp(random.uniform(0, np.log(WINDOW + 0.99), count)).astype(np.int64), WINDOW) - 1
    late = random.random(count) < 0.5
    ends = np.where(late, random.integers(0, WINDOW, count), ends)
    lengths = np.where(random.random(count) < 0.8, WINDOW, random.integers(1, WINDOW + 1, count))
    return session, ends, lengths


def _fit_anomaly(described: Described, random: np.random.Generator, epochs: int) -> tuple[AutoEncoder, Scaling]:
    session, ends, lengths = _pick(described, random, 10)
    chosen = described.where(session)
    features = features_at(chosen, ends, lengths)
    intruder = chosen.intruder[np.arange(len(ends)), ends]
    own = features[~intruder]
    mean = own.mean(0)
    # What never varies in training (the context) is scaled to nothing, so that it moves no weight trained on nothing.
    spread = own.std(0)
    spread = np.where(spread < 1e-4, 1e3, np.maximum(spread, 0.05)).astype(np.float32)
    scaled = scale(features, mean, spread)
    clean, noise = torch.from_numpy(scaled[~intruder]), torch.from_numpy(scaled[intruder])
    net = AutoEncoder()

    def loss(rows: Tensor) -> Tensor:
        # Denoising: part of the input comes from somebody else's event, and the owner's has to be rebuilt.
        target = clean[rows]
        share = torch.rand(len(rows), 1) * 0.8
        swapped = torch.rand(target.shape) < share
        swapped &= torch.rand(len(rows), 1) < 0.6
        other = noise[torch.randint(len(noise), (len(rows),))]
        rebuilt = net(torch.where(swapped, other, target) + 0.1 * torch.randn(target.shape))
        return nn.functional.smooth_l1_loss(rebuilt, target)

    _descend(net, loss, len(clean), epochs)
    with torch.no_grad():
        rebuilt = net(torch.from_numpy(scaled)).numpy()
    found = errors(scaled, rebuilt)
    importance = _weights(described)[session, ends]
    regime = regime_of(windows_at(chosen.steps, ends, lengths))
    weights, biases = np.zeros((found.shape[1], len(REGIMES)), np.float32), np.zeros(len(REGIMES), np.float32)
    for index in range(len(REGIMES)):
        some = random.permutation(np.flatnonzero(regime == index))[:15_000]
        weighing = fit_discriminant(found[some], intruder[some], ERROR_RIDGE, importance[some])
        weights[:, index] = weighing.weight / weighing.spread
        biases[index] = weighing.bias - weighing.mean @ weights[:, index]
    return net, Scaling(mean, spread, weights, biases)


def _fit_sequence(described: Described, random: np.random.Generator, epochs: int) -> SequenceNetwork:
    net = SequenceNetwork()
    steps, intruder = torch.from_numpy(described.steps), torch.from_numpy(described.intruder).float()
    # Early events weigh more: most decisions fall there.
    weight = (1.0 + 4.0 / (1.0 + torch.arange(WINDOW) / 3.0)) * torch.from_numpy(_weights(described))

    def loss(rows: Tensor) -> Tensor:
        odds = net.every_step(_jitter(steps[rows]))
        each = nn.functional.binary_cross_entropy_with_logits(odds, _soft(intruder[rows]), reduction="none")
        return (each * weight[rows]).mean()

    _descend(net, loss, len(steps), epochs * 2, batch=128)
    net.ignore(STEP["context_odds"])
    return net


def _fit_pattern(described: Described, random: np.random.Generator, epochs: int) -> PatternNetwork:
    net = PatternNetwork()
    session, ends, lengths = _pick(described, random, 8)
    window = torch.from_numpy(windows_at(described.steps[session], ends, lengths))
    intruder = torch.from_numpy(described.intruder[session, ends]).float()
    weight = torch.from_numpy(_weights(described)[session, ends])

    def loss(rows: Tensor) -> Tensor:
        odds = net(_jitter(window[rows]))[:, 0]
        each = nn.functional.binary_cross_entropy_with_logits(odds, _soft(intruder[rows]), reduction="none")
        return (each * weight[rows]).mean()

    _descend(net, loss, len(window), epochs)
    net.ignore(STEP["context_odds"])
    return net


def _weights(described: Described) -> NDArray[np.float32]:
    """Weight of every event [Q, 50]: at every place in a session owners and intruders weigh the same in sum, so that
    how late it is does not count as evidence; and the first events after a takeover weigh more, since that is when it
    has to be noticed.
    """
    intruder = described.intruder
    age = np.cumsum(intruder, 1)
    started_late = intruder.any(1) & ~intruder[:, 0]
    weight = np.where(intruder, 1.0 + BOOST * np.exp(-(age - 1) / 3.0) * started_late[:, None], 1.0)
    for side in (intruder, ~intruder):
        total = (weight * side).sum(0)
        weight = np.where(side, weight * 0.5 * len(weight) / np.maximum(total, 1.0), weight)
    return np.minimum(weight, 20.0).astype(np.float32)


def _soft(label: Tensor) -> Tensor:
    """Labels a little short of certain, so that odds stay finite where people differ from those trained on."""
    return label * 0.98 + 0.01


def _jitter(steps: Tensor) -> Tensor:
    """Noise on every value and, per session, a shift of the odds: a stranger's odds are off by more than one event's
    noise."""
    present = steps[..., :1]
    noisy = steps + 0.05 * torch.randn_like(steps) * present
    shift = torch.zeros(len(steps), 1, steps.shape[-1])
    shift[:, :, 5:8] = 0.1 * torch.randn(len(steps), 1, 3)
    noisy = noisy + shift * present
    return torch.cat([present, noisy[..., 1:]], -1)


def _descend(net: nn.Module, loss: Callable[[Tensor], Tensor], count: int, epochs: int, batch: int = 512) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = max(count // batch, 1) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(count)
        for start in range(0, max(count // batch, 1) * batch, batch):
            value = loss(order[start : start + batch])
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    net.eval()
