"""Readers of recorded behaviour: keystrokes in the MEU-Mobile table, mouse sessions in the Balabit folder.

Both become the raw types of `servers.threat.behavior`, so that an evaluation goes the way of live events.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from servers.threat import behavior
from servers.threat.behavior import KeystrokeRun, MousePath

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

PROMPT: Final = "tie5roanl"
"""Name of the phrase that everybody in the keystroke table typed."""

THIN_MS: Final = 100.0
"""Pointer reports closer than this to the one before are dropped: recording devices differ below it."""

WINDOW_POINTS: Final = 40
"""Thinned pointer reports that make one event."""

_CLASS_OF: Final = {
    "Shift": behavior.MODIFIER,
    "Caps": behavior.MODIFIER,
    "Enter": behavior.ENTER,
    "Space": behavior.SPACE,
    "Backspace": behavior.CORRECTION,
}
_LEFT_HAND: Final = frozenset("qwertasdfgzxcvb")


_BUTTONS: Final = frozenset((behavior.PRESS, behavior.RELEASE, behavior.SECONDARY_PRESS, behavior.SECONDARY_RELEASE))

SLOW_MS: Final = 109.0
"""Time between reports of the slow recorders."""


class RecordingError(ValueError):
    """The recordings cannot be read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Typist:
    """One person's entries of the same phrase, in the order they were typed."""

    name: str
    entries: tuple[KeystrokeRun, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class MouseSession:
    """One recorded session, thinned and cut into events."""

    name: str
    windows: tuple[MousePath, ...]
    gap_ms: float
    """Median time between reports as recorded, milliseconds."""
    slowed: tuple[MousePath, ...]
    """The same session as a recorder of about 109 ms would have it; empty where the recorder was slow already."""
    illegal: bool | None
    """True when the labels say that another person was at the mouse; None when they say nothing."""


@dataclass(frozen=True, slots=True)
class MouseUser:
    """One person's mouse sessions."""

    name: str
    training: tuple[MouseSession, ...]
    test: tuple[MouseSession, ...]
    digest: str


def read_keystrokes(path: Path) -> list[Typist]:
    """The people of a table with the columns of MEU-Mobile KSD: `Subject`, then `Hold ...`, `DD ...`, and where the
    keyboard has the sensors `Pressure ...` and `Size ...`, one column a key.

    Raises:
        RecordingError: the file is not there, has no such columns, or holds something else than numbers.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(
            f"cannot read the keystroke table {path}: {error}. Give --keystrokes a CSV file."
        ) from error
    if not rows:
        raise RecordingError(f"the keystroke table {path} is empty")
    columns = _Columns.of([name.strip() for name in rows[0]], path)
    people: dict[str, list[KeystrokeRun]] = {}
    digests: dict[str, hashlib._Hash] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        name, run = columns.entry(row, number, path)
        people.setdefault(name, []).append(run)
        digests.setdefault(name, hashlib.sha256()).update(run.hold_ms.tobytes() + run.flight_ms.tobytes())
    return [Typist(name, tuple(runs), digests[name].hexdigest()[:16]) for name, runs in people.items()]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the table's columns lie."""

    subject: int
    hold: tuple[int, ...]
    down_down: tuple[int, ...]
    pressure: tuple[int, ...]
    size: tuple[int, ...]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, names: list[str], path: Path) -> _Columns:
        def starting(prefix: str) -> tuple[int, ...]:
            return tuple(index for index, name in enumerate(names) if name.startswith(prefix))

        hold, down_down = starting("Hold "), starting("DD ")
        if "Subject" not in names or not hold or len(down_down) != len(hold) - 1:
            raise RecordingError(
                f"{path} is no keystroke table: it needs the columns 'Subject', 'Hold KEY' for each key and 'DD A.B'"
                f" for each pair of keys; found {', '.join(names[:4])}..."
            )
        pressure, size = starting("Pressure "), starting("Size ")
        for label, found in (("Pressure", pressure), ("Size", size)):
            if found and len(found) != len(hold):
                raise RecordingError(
                    f"{path} has {len(found)} columns '{label} KEY' for {len(hold)} keys: give all or none"
                )
        classes = np.array([_class_of(names[index].removeprefix("Hold ")) for index in hold], np.int64)
        return cls(names.index("Subject"), hold, down_down, pressure, size, classes)

    def entry(self, row: list[str], number: int, path: Path) -> tuple[str, KeystrokeRun]:
        def read(columns: tuple[int, ...]) -> NDArray[np.float32]:
            return np.array([float(row[index]) for index in columns], np.float32)

        try:
            hold, down_down = read(self.hold), read(self.down_down)
            pressure, size = read(self.pressure), read(self.size)
            name = row[self.subject].strip()
        except (ValueError, IndexError) as error:
            raise RecordingError(
                f"{path}, line {number}: {error}. Every cell of a key's columns must be a number."
            ) from error
        flight = np.concatenate((np.zeros(1, np.float32), down_down))
        if not all(np.isfinite(column).all() for column in (hold, flight, pressure, size)):
            raise RecordingError(f"{path}, line {number}: a value is not finite. Every cell must be a finite number.")
        return name, KeystrokeRun(PROMPT, self.classes, hold, flight, pressure, size)


def _class_of(key: str) -> int:
    if key in _CLASS_OF:
        return _CLASS_OF[key]
    if len(key) == 1 and key.isalpha():
        return behavior.LETTER_LEFT if key.lower() in _LEFT_HAND else behavior.LETTER_RIGHT
    if key.isdigit():
        return behavior.DIGIT
    return behavior.PUNCTUATION if len(key) == 1 else behavior.NAVIGATION


def read_mouse(folder: Path, on_file: Callable[[], None] = lambda: None) -> list[MouseUser]:
    """The people of a folder laid out as the Balabit challenge: `training_files/USER/SESSION`,
    `test_files/USER/SESSION` and, when the test sessions are labelled, `public_labels.csv` (`filename,is_illegal`).

    Args:
        folder: the unpacked archive.
        on_file: called after each file, for a progress bar.

    Raises:
        RecordingError: the folder has no such layout, or a file has no such columns.
    """
    if not (folder / "training_files").is_dir():
        raise RecordingError(
            f"{folder} is no mouse folder: it needs training_files/USER/SESSION."
            " Give --mouse the unpacked archive's folder."
        )
    labels = _labels(folder / "public_labels.csv")
    users = []
    for home in sorted(path for path in (folder / "training_files").iterdir() if path.is_dir()):
        digest = hashlib.sha256()
        sessions: dict[str, list[MouseSession]] = {"training_files": [], "test_files": []}
        for part, found in sessions.items():
            place = folder / part / home.name
            for file in sorted(place.iterdir()) if place.is_dir() else []:
                found.append(_session(file, labels.get(file.name)))
                if part == "training_files":
                    digest.update(file.name.encode())
                on_file()
        users.append(
            MouseUser(
                home.name, tuple(sessions["training_files"]), tuple(sessions["test_files"]), digest.hexdigest()[:16]
            )
        )
    return users


def count_mouse_files(folder: Path) -> int:
    """How many session files `read_mouse` will read."""
    return sum(1 for part in ("training_files", "test_files") for _ in folder.glob(f"{part}/*/*"))


def _labels(path: Path) -> dict[str, bool]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not {"filename", "is_illegal"} <= set(reader.fieldnames):
            raise RecordingError(f"{path} needs the columns filename and is_illegal")
        return {row["filename"]: row["is_illegal"].strip() == "1" for row in reader}


_COLUMNS: Final = ("client timestamp", "button", "state", "x", "y")
_ACTION: Final = {
    ("NoButton", "Move"): behavior.MOVE,
    ("NoButton", "Drag"): behavior.DRAG,
    ("Left", "Pressed"): behavior.PRESS,
    ("Left", "Released"): behavior.RELEASE,
    ("Right", "Pressed"): behavior.SECONDARY_PRESS,
    ("Right", "Released"): behavior.SECONDARY_RELEASE,
    ("Scroll", "Down"): behavior.SCROLL,
    ("Scroll", "Up"): behavior.SCROLL,
}


def _session(path: Path, illegal: bool | None) -> MouseSession:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"cannot read the mouse session {path}: {error}") from error
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    if not set(_COLUMNS) <= set(names):
        raise RecordingError(f"{path} is no mouse session: its first line must name the columns {', '.join(_COLUMNS)}")
    at = [names.index(name) for name in _COLUMNS]
    rows: list[tuple[float, float, float, int]] = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(",")
        try:
            time, button, state, x, y = (cells[index] for index in at)
            action = _ACTION.get((button, state))
            if action == behavior.SCROLL:
                # The recorder writes no position for the wheel: the pointer is where it was.
                rows.append((float(time) * 1000.0, *(rows[-1][1:3] if rows else (float(x), float(y))), action))
            elif action is not None:
                rows.append((float(time) * 1000.0, float(x), float(y), action))
        except (ValueError, IndexError) as error:
            # The archive repeats its header line inside some files.
            if line != lines[0]:
                raise RecordingError(
                    f"{path}, line {number}: {error}. Timestamps and positions must be numbers."
                ) from error
    reports = np.array(rows, np.float64).reshape(-1, 4)
    gaps = np.diff(reports[:, 0])
    gaps = gaps[(gaps > 0) & (gaps < 300)]
    gap = float(np.median(gaps)) if len(gaps) else float("nan")
    slowed = windows_of(_slowed(reports)) if gap < SLOW_MS / 2 else ()
    return MouseSession(path.name, windows_of(reports), gap, slowed, illegal)


def _slowed(reports: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reports as a slow recorder would have made them: one every 94, 109 or 125 ms, as often as in the slow
    recordings."""
    random = np.random.default_rng(0)
    steps = random.choice((94.0, 109.0, 125.0), len(reports) + 1, p=(0.22, 0.53, 0.25)).tolist()
    keep, last = [], -np.inf
    for index, (now, action) in enumerate(zip(reports[:, 0].tolist(), reports[:, 3].astype(int).tolist(), strict=True)):
        if action in _BUTTONS:
            keep.append(index)
        elif now - last >= steps[len(keep)] - 8.0:
            keep.append(index)
            last = now
    return reports[keep]


def windows_of(reports: NDArray[np.float64], points: int = WINDOW_POINTS) -> tuple[MousePath, ...]:
    """Thin the reports (`time_ms, x, y, action` [K, 4]) and cut them into events of `points` reports each; the rest
    is left out."""
    reports = reports[np.isfinite(reports).all(1)]
    # Positions far outside any screen are the recorder's marks for "unknown".
    reports = reports[(np.abs(reports[:, 1:3]) < 20_000).all(1)]
    kept = _thinned(reports)
    return tuple(_path(kept[start : start + points]) for start in range(0, len(kept) - points + 1, points))


def _thinned(reports: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reports at least `THIN_MS` apart; button presses and releases stay, since people and not devices time them."""
    time = np.maximum.accumulate(reports[:, 0]).tolist()
    actions = reports[:, 3].astype(int).tolist()
    keep, last = [], -np.inf
    for index, (now, action) in enumerate(zip(time, actions, strict=True)):
        if now - last >= THIN_MS:
            keep.append(index)
            last = now
        elif action in _BUTTONS:
            keep.append(index)
    thinned = reports[keep]
    thinned[:, 0] = np.asarray(time)[keep]
    return thinned


def _path(rows: NDArray[np.float64]) -> MousePath:
    return MousePath(
        np.minimum(np.rint(rows[:, 0] - rows[0, 0]), 600_000.0),
        np.rint(rows[:, 1] - rows[0, 1]),
        np.rint(rows[:, 2] - rows[0, 2]),
        rows[:, 3].astype(np.int64),
    )
