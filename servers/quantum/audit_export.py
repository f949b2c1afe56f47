"""The form of an export of the audit trail: one line of canonical JSON for each thing. `docs/audit.md` writes it down.

{"audit_export": {"version": 1, "organization_id": ..., "exported_at": ..., "keys": [...]}}
{"record": {the object that is hashed, and "record_hash"}}
{"checkpoint": {the object that is signed, and "signature"}}        right after the last record that it covers
{"end": {"records": ..., "checkpoints": ..., "last_sequence": ...}}
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from servers.quantum.audit_chain import FIRST_PREVIOUS, canonical_json, checkpoint_object, record_object, timestamp_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from servers.quantum.audit_chain import AuditRecord, Checkpoint

VERSION: Final = 1
_RECORD_FIELDS: Final = frozenset(
    {
        "audit_id",
        "correlation_id",
        "error_details",
        "hsm_operation_id",
        "key_id",
        "operation",
        "operation_data",
        "operation_timestamp",
        "organization_id",
        "previous_hash",
        "processing_time_ms",
        "record_hash",
        "result",
        "sequence",
        "service_id",
        "source_ip",
        "user_agent",
        "user_id",
    }
)
_CHECKPOINT_FIELDS: Final = frozenset(
    {
        "algorithm",
        "created_at",
        "key_id",
        "key_version",
        "organization_id",
        "record_hash",
        "sequence",
        "signature",
    }
)


class MalformedError(ValueError):
    """A line is not what an export holds."""


@dataclass(frozen=True, slots=True)
class CheckpointKey:
    """A public key that checkpoints are checked with."""

    public_key: bytes
    """As its standard encodes it."""
    algorithm: str = "ML-DSA-65"
    key_id: str = ""
    """UUID of the key; empty: whatever a checkpoint names (a pinned key without a name)."""
    key_version: int = 0

    def fits(self, key_id: str, key_version: int, algorithm: str) -> bool:
        """Whether a checkpoint that names these may be checked with the key."""
        named = not self.key_id or (self.key_id, self.key_version) == (key_id, key_version)
        return named and self.algorithm == algorithm


def header_line(organization_id: str, exported_at: datetime, keys: Sequence[CheckpointKey]) -> bytes:
    """The first line."""
    header = {
        "version": VERSION,
        "organization_id": organization_id,
        "exported_at": timestamp_text(exported_at),
        "keys": [key_object(key) for key in keys],
    }
    return canonical_json({"audit_export": header}) + b"\n"


def key_object(key: CheckpointKey) -> dict[str, object]:
    """A key as it stands in the header."""
    return {
        "key_id": key.key_id,
        "key_version": key.key_version,
        "algorithm": key.algorithm,
        "public_key": base64.b64encode(key.public_key).decode(),
    }


def record_line(record: AuditRecord) -> bytes:
    """A record's line."""
    return canonical_json({"record": record_object(record) | {"record_hash": record.record_hash.hex()}}) + b"\n"


def checkpoint_line(checkpoint: Checkpoint) -> bytes:
    """A checkpoint's line."""
    signature = base64.b64encode(checkpoint.signature).decode()
    return canonical_json({"checkpoint": checkpoint_object(checkpoint) | {"signature": signature}}) + b"\n"


def end_line(records: int, checkpoints: int, last_sequence: int) -> bytes:
    """The last line."""
    return (
        canonical_json({"end": {"records": records, "checkpoints": checkpoints, "last_sequence": last_sequence}})
        + b"\n"
    )


def key_of(value: Any) -> CheckpointKey:
    """A key from its JSON object.

    Raises:
        MalformedError: it is none.
    """
    try:
        raw = base64.b64decode(value["public_key"], validate=True)
        return CheckpointKey(raw, str(value["algorithm"]), str(value["key_id"]), int(value["key_version"]))
    except (TypeError, KeyError, ValueError) as error:
        raise MalformedError("does not name a key by key_id, key_version, algorithm and public_key (base64)") from error


def keys_of(value: Any) -> list[CheckpointKey]:
    """The keys in a header.

    Raises:
        MalformedError: they are none.
    """
    if not isinstance(value, list):
        raise MalformedError("does not list the keys of checkpoints")
    return [key_of(each) for each in value]


def parsed(line: bytes) -> tuple[str, Mapping[str, Any]]:
    """What a line holds, and its kind. It must be canonical JSON, so that there is nothing in it that is not looked at.

    Raises:
        MalformedError: it is no line of an export.
    """
    try:
        value = orjson.loads(line)
        written = canonical_json(value)
    except (orjson.JSONDecodeError, TypeError) as error:
        raise MalformedError("is not JSON") from error
    if written + b"\n" != line:
        raise MalformedError("is not canonical JSON, so it was not written by an export")
    if not isinstance(value, dict) or len(value) != 1:
        raise MalformedError("does not hold one thing")
    [(kind, held)] = value.items()
    if kind not in ("audit_export", "record", "checkpoint", "end") or not isinstance(held, dict):
        raise MalformedError("holds nothing that is known")
    return kind, held


def place_and_hashes(record: Mapping[str, Any]) -> tuple[int, bytes, bytes]:
    """A record's place, its hash and the hash that it names before it.

    Raises:
        MalformedError: it is no record.
    """
    if record.keys() != _RECORD_FIELDS:
        raise MalformedError("holds a record with other fields than a record has")
    return _sequence(record), _hash(record["record_hash"]), _hash(record["previous_hash"])


def place_and_signature(checkpoint: Mapping[str, Any]) -> tuple[int, bytes, bytes]:
    """A checkpoint's place, the hash that it names, and its signature.

    Raises:
        MalformedError: it is no checkpoint.
    """
    if checkpoint.keys() != _CHECKPOINT_FIELDS:
        raise MalformedError("holds a checkpoint with other fields than a checkpoint has")
    try:
        signature = base64.b64decode(checkpoint["signature"], validate=True)
    except (TypeError, binascii.Error, ValueError) as error:
        raise MalformedError("holds a signature that is not base64") from error
    return _sequence(checkpoint), _hash(checkpoint["record_hash"]), signature


def _sequence(value: Mapping[str, Any]) -> int:
    sequence = value["sequence"]
    if not isinstance(sequence, int) or isinstance(sequence, bool) or sequence < 1:
        raise MalformedError("names no place in a chain")
    return sequence


def _hash(value: Any) -> bytes:
    try:
        digest = bytes.fromhex(value)
    except (TypeError, ValueError) as error:
        raise MalformedError("names a hash that is not hexadecimal") from error
    if digest.hex() != value or len(digest) != len(FIRST_PREVIOUS):
        raise MalformedError("names a hash of another form")
    return digest
