"""Checks an export of the audit trail, offline: whether it is one whole chain, and what of it is signed.

A hash chain alone shows that nothing inside was changed, dropped, moved or put in by somebody who did not make the rest
anew as well. Signatures show that the HSM's key stood behind it. What neither shows is said in `Report.limits`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from servers.quantum.audit_chain import CHECKPOINT_CONTEXT, CHECKPOINT_LINE, FIRST_PREVIOUS, canonical_json, object_hash
from servers.quantum.audit_export import (
    VERSION,
    CheckpointKey,
    MalformedError,
    keys_of,
    parsed,
    place_and_hashes,
    place_and_signature,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Verify = Callable[[CheckpointKey, bytes, bytes, bytes], bool]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written."""

    kind: str
    """"changed", "dropped", "reordered", "inserted", "checkpoint", "truncated" or "malformed"."""
    line: int
    """Line of the file, from 1."""
    sequence: int
    """Place in the chain of the first record concerned; 0 when no record is."""
    audit_id: str
    """UUID of that record; empty when it is not there."""
    text: str
    """What is wrong, in words."""


@dataclass(slots=True)
class Report:
    """What an export shows."""

    organization_id: str = ""
    records: int = 0
    checkpoints: int = 0
    first_sequence: int = 0
    last_sequence: int = 0
    signed_through: int = 0
    """Place of the last record that a checkpoint with a good signature covers; 0: none."""
    pinned_through: int = 0
    """Place of the last record that a pinned checkpoint covers; 0: none."""
    problem: Problem | None = None
    """The first thing that is wrong; None: nothing is."""
    problems: int = 0
    """How many things are wrong."""
    limits: list[str] = field(default_factory=list)
    """What the export cannot prove, in words."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Pins:
    """What the checker knows from elsewhere."""

    keys: Sequence[CheckpointKey] = ()
    """Keys that checkpoints must be signed with; empty: those that the export itself names."""
    checkpoints: Sequence[Mapping[str, Any]] = ()
    """Checkpoints kept elsewhere, as the objects in an export."""


class ExportVerifier:
    """Reads an export line by line; then `report`.

    Args:
        verify: checks a signature: key, message, signature, context.
        pins: what is known from elsewhere.
    """

    def __init__(self, verify: Verify, pins: Pins | None = None) -> None:
        self._verify = verify
        self._pins = pins or Pins()
        self._report = Report()
        self._keys: Sequence[CheckpointKey] = self._pins.keys
        self._line = 0
        self._organization: Any = None
        self._header = self._ended = False
        self._expected = 0
        self._previous: bytes | None = None
        self._last_id = ""
        self._gap: int | None = None
        self._doubt: tuple[int, str] | None = None
        self._unmet = {int(pin["sequence"]): str(pin["record_hash"]) for pin in self._pins.checkpoints}

    def read(self, lines: Iterable[bytes]) -> Report:
        """Check a whole export."""
        for line in lines:
            self._line += 1
            try:
                self._one(line)
            except MalformedError as error:
                place = self._expected or int(self._header)
                self._found("malformed", place, "", f"line {self._line} {error}")
        self._line += 1
        self._finish()
        return self._report

    def _one(self, line: bytes) -> None:
        kind, value = parsed(line)
        if self._ended:
            self._found("inserted", 0, "", f"line {self._line} stands after the end")
        if not self._header:
            if kind != "audit_export":
                raise MalformedError("is not the first line of an export of the audit trail")
            self._read_header(value)
        elif kind == "record":
            self._read_record(value)
        elif kind == "checkpoint":
            self._read_checkpoint(value)
        elif kind == "end":
            self._read_end(value)
        else:
            raise MalformedError("is a second beginning")

    def _read_header(self, header: Mapping[str, Any]) -> None:
        if header.get("version") != VERSION:
            raise MalformedError(f"names another version than {VERSION}: use the program that wrote it, or a newer one")
        self._header = True
        self._organization = header.get("organization_id")
        self._report.organization_id = _shown(self._organization)
        if any(pin.get("organization_id", self._organization) != self._organization for pin in self._pins.checkpoints):
            self._found("checkpoint", 0, "", "a pinned checkpoint is of another organisation than the export")
        if not self._pins.keys:
            self._keys = keys_of(header.get("keys"))

    def _read_record(self, record: Mapping[str, Any]) -> None:
        sequence, digest, previous = place_and_hashes(record)
        self._report.records += 1
        audit_id = _shown(record["audit_id"])
        if self._expected == 0:
            self._begin(sequence, previous)
        body = {name: value for name, value in record.items() if name != "record_hash"}
        if object_hash(body) != digest:
            place = self._expected
            self._settle_doubt()
            self._found("changed", place, audit_id, f"record {place} is not what its hash was made of")
            self._resume(max(place, self._expected), previous_of=None, audit_id=audit_id)
            return
        if record["organization_id"] != self._organization:
            self._found("inserted", sequence, audit_id, f"record {sequence} is of another organisation")
        if sequence != self._expected:
            self._misplaced(sequence, audit_id)
            if sequence < self._expected:
                return
        elif self._previous is not None and previous != self._previous:
            self._unlinked(sequence, audit_id)
        else:
            self._settle_doubt()
        self._meet_pin(sequence, digest)
        self._resume(sequence, previous_of=digest, audit_id=audit_id)

    def _begin(self, sequence: int, previous: bytes) -> None:
        self._report.first_sequence = sequence
        self._expected = sequence
        if sequence == 1:
            self._previous = FIRST_PREVIOUS
        else:
            pinned = self._unmet.pop(sequence - 1, None)
            self._previous = bytes.fromhex(pinned) if pinned is not None else previous
            self._report.pinned_through = sequence - 1 if pinned is not None else 0

    def _resume(self, sequence: int, *, previous_of: bytes | None, audit_id: str) -> None:
        self._previous = previous_of
        self._expected = sequence + 1
        self._last_id = audit_id
        self._report.last_sequence = max(self._report.last_sequence, sequence)

    def _misplaced(self, sequence: int, audit_id: str) -> None:
        """The record is whole, and stands where another should."""
        self._settle_doubt()
        place = self._expected
        if sequence > place:
            if self._report.problem is None:
                self._gap = place
            self._found("dropped", place, "", f"record {place} is missing: record {sequence} stands in its place")
        elif self._gap is not None and sequence == self._gap and self._report.problem is not None:
            moved = f"record {sequence} stands behind record {place - 1}"
            self._report.problem = replace(self._report.problem, kind="reordered", audit_id=audit_id, text=moved)
            self._gap = None
        else:
            self._found("inserted", sequence, audit_id, f"a second record {sequence} stands behind record {place - 1}")

    def _unlinked(self, sequence: int, audit_id: str) -> None:
        """The record is whole and in its place, and names another record before it than the one that is there.

        One such step speaks against the record before (it was changed and its hash made anew); two in a row speak
        against the one between them.
        """
        if self._doubt is not None:
            self._settle_doubt(culprit=(sequence - 1, self._last_id))
        else:
            self._doubt = (sequence - 1, self._last_id)
        del audit_id

    def _settle_doubt(self, culprit: tuple[int, str] | None = None) -> None:
        if self._doubt is None:
            return
        place, audit_id = culprit or self._doubt
        self._doubt = None
        after = place + 1
        self._found(
            "changed", place, audit_id, f"record {place} was changed: record {after} names another hash before it"
        )

    def _meet_pin(self, sequence: int, digest: bytes) -> None:
        pinned = self._unmet.pop(sequence, None)
        if pinned is None:
            return
        if pinned != digest.hex():
            self._found(
                "checkpoint",
                sequence,
                self._last_id,
                f"record {sequence} is not the one that the pinned checkpoint names: it or one before it was changed",
            )
        elif self._report.ok:
            self._report.pinned_through = sequence

    def _read_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        sequence, digest, signature = place_and_signature(checkpoint)
        self._report.checkpoints += 1
        named = f"the checkpoint of record {sequence}"
        if checkpoint["organization_id"] != self._organization:
            self._found("checkpoint", sequence, "", f"{named} is of another organisation")
        elif sequence != self._expected - 1:
            self._found("checkpoint", sequence, "", f"{named} does not stand behind that record")
        elif self._previous is not None and digest != self._previous:
            self._found(
                "checkpoint", sequence, self._last_id, f"{named} names another record: it or one before was changed"
            )
        elif self._signature_holds(checkpoint, signature):
            self._settle_doubt()
            if self._report.ok:
                self._report.signed_through = sequence

    def _signature_holds(self, checkpoint: Mapping[str, Any], signature: bytes) -> bool:
        key_id, version, algorithm = checkpoint["key_id"], checkpoint["key_version"], checkpoint["algorithm"]
        sequence = int(checkpoint["sequence"])
        fitting = [key for key in self._keys if key.fits(key_id, version, algorithm)]
        if not fitting:
            whose = "pinned" if self._pins.keys else "in the export"
            named = f"{_shown(key_id)}.{_shown(version)}"
            text = f"the checkpoint of record {sequence} is signed by key {named}, which is not {whose}"
            self._found("checkpoint", sequence, "", text)
            return False
        message = CHECKPOINT_LINE + canonical_json({n: v for n, v in checkpoint.items() if n != "signature"})
        if any(self._verify(key, message, signature, CHECKPOINT_CONTEXT) for key in fitting):
            return True
        self._found("checkpoint", sequence, "", f"the signature of the checkpoint of record {sequence} does not hold")
        return False

    def _read_end(self, end: Mapping[str, Any]) -> None:
        self._settle_doubt()
        self._ended = True
        report = self._report
        said = (end.get("records"), end.get("checkpoints"), end.get("last_sequence"))
        if said != (report.records, report.checkpoints, report.last_sequence):
            text = f"the end speaks of other numbers than {report.records} records, {report.checkpoints} checkpoints"
            self._found("truncated", self._expected, "", text)

    def _finish(self) -> None:
        self._settle_doubt()
        if not self._header:
            self._found("malformed", 0, "", "there is no export of the audit trail in the file")
        elif not self._ended:
            self._found("truncated", self._expected, "", "the export is cut off: its end line is missing")
        for sequence in sorted(self._unmet):
            if sequence >= self._report.first_sequence:
                text = f"record {sequence}, which a pinned checkpoint names, is not there: the chain's end was cut off"
                self._found("truncated", min(sequence, self._expected), "", text)
        self._report.limits = _limits(self._report, self._pins)

    def _found(self, kind: str, sequence: int, audit_id: str, text: str) -> None:
        self._report.problems += 1
        if self._report.problem is None:
            self._report.problem = Problem(kind, self._line, sequence, audit_id, text)


def _shown(value: object) -> str:
    """What a file says, fit to be shown on a terminal: the file may be anybody's."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:64])


def _limits(report: Report, pins: Pins) -> list[str]:
    limits = []
    if report.first_sequence > 1 and report.pinned_through < report.first_sequence - 1:
        limits.append(f"The file begins at record {report.first_sequence}: it says nothing of those before.")
    if report.signed_through == 0:
        limits.append("No checkpoint signs any of it: whoever can write a file can make such a chain.")
    elif report.signed_through < report.last_sequence:
        limits.append(f"No checkpoint signs the records after {report.signed_through} yet.")
    if not pins.keys and report.checkpoints:
        limits.append(
            "Signatures were checked with the keys that the file itself names: whoever made the file anew could have"
            " put their own there. Pin the key with --key."
        )
    if report.pinned_through == 0:
        limits.append(
            "Without a checkpoint kept elsewhere (--checkpoint) it cannot be seen that records were cut off the end,"
            " or that somebody who could sign made the whole chain anew."
        )
    elif report.pinned_through < report.last_sequence:
        limits.append(f"Records after {report.pinned_through}, the last pinned place, could be cut off unseen.")
    return limits
