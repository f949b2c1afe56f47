"""The audit chain's form: which bytes are hashed, which are signed. `docs/audit.md` writes it down for other languages.

A record's hash is SHA-256 over a fixed line and the record as canonical JSON (RFC 8785), its own hash left out and the
hash of the record before it included. Records hold nothing whose canonical form is hard to get right: object names
are ASCII, numbers are integers of at most 2^53 - 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD_LINE: Final = b"behaviorguard audit record v1\n"
CHECKPOINT_LINE: Final = b"behaviorguard audit checkpoint v1\n"
CHECKPOINT_CONTEXT: Final = b"behaviorguard/audit-checkpoint"
"""Context string (FIPS 204) under which checkpoints are signed."""
FIRST_PREVIOUS: Final = bytes(32)
"""What the first record of a chain names as the hash before it."""
HASH_BYTES: Final = 32
MAX_INTEGER: Final = 2**53 - 1

_MAX_DATA_BYTES: Final = 4096
_MAX_DEPTH: Final = 6


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record in its place in the chain. Ids are lower-case UUIDs; text that is not known is empty."""

    audit_id: str
    operation: str
    """Label of the contract's `QuantumOperation`: "keygen"."""
    key_id: str
    user_id: str
    organization_id: str
    service_id: str
    """The calling workload."""
    operation_timestamp: datetime
    """UTC, to the microsecond."""
    source_ip: str
    user_agent: str
    correlation_id: str
    operation_data: Mapping[str, object]
    """Plain JSON values, as `plain_data` makes them."""
    result: str
    """"success", "failure" or "partial"."""
    processing_time_ms: int
    error_details: str
    """`ERROR_REASON_...: what was wrong`; empty on success."""
    hsm_operation_id: str
    sequence: int
    """Place in the organisation's chain, from 1."""
    previous_hash: bytes
    record_hash: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement of where a chain's head was."""

    organization_id: str
    sequence: int
    record_hash: bytes
    created_at: datetime
    """UTC, to the microsecond."""
    key_id: str
    key_version: int
    algorithm: str
    """"ML-DSA-65"."""
    signature: bytes = b""


def record_object(record: AuditRecord) -> dict[str, object]:
    """The record as the JSON object that is hashed: everything but its own hash."""
    return {
        "audit_id": record.audit_id,
        "correlation_id": record.correlation_id,
        "error_details": record.error_details,
        "hsm_operation_id": record.hsm_operation_id,
        "key_id": record.key_id,
        "operation": record.operation,
        "operation_data": record.operation_data,
        "operation_timestamp": timestamp_text(record.operation_timestamp),
        "organization_id": record.organization_id,
        "previous_hash": record.previous_hash.hex(),
        "processing_time_ms": record.processing_time_ms,
        "result": record.result,
        "sequence": record.sequence,
        "service_id": record.service_id,
        "source_ip": record.source_ip,
        "user_agent": record.user_agent,
        "user_id": record.user_id,
    }


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, object]:
    """The checkpoint as the JSON object that is signed: everything but the signature."""
    return {
        "algorithm": checkpoint.algorithm,
        "created_at": timestamp_text(checkpoint.created_at),
        "key_id": checkpoint.key_id,
        "key_version": checkpoint.key_version,
        "organization_id": checkpoint.organization_id,
        "record_hash": checkpoint.record_hash.hex(),
        "sequence": checkpoint.sequence,
    }


def object_hash(value: Mapping[str, object]) -> bytes:
    """SHA-256 of a record given as the JSON object that is hashed."""
    return hashlib.sha256(RECORD_LINE + canonical_json(value)).digest()


def record_hash(record: AuditRecord) -> bytes:
    """The hash that the record must carry."""
    return object_hash(record_object(record))


def checkpoint_message(checkpoint: Checkpoint) -> bytes:
    """The bytes that a checkpoint's signature covers."""
    return CHECKPOINT_LINE + canonical_json(checkpoint_object(checkpoint))


def canonical_json(value: object) -> bytes:
    """RFC 8785 for the values that records hold; orjson writes strings and integers exactly so, and sorts names by
    their bytes, which for ASCII is the same order.

    Raises:
        TypeError: the value is none that JSON can carry, or text is not Unicode.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def timestamp_text(moment: datetime) -> str:
    """UTC with six digits of a second: "2026-11-23T02:26:07.123456Z".

    Raises:
        ValueError: it has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("a timestamp without a time zone names no moment")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"


def plain_text(text: str, limit: int) -> str:
    """Text that PostgreSQL and JSON can carry, at most `limit` characters: no NUL, no half surrogate pairs."""
    cut = text[:limit]
    if cut.isascii() and "\0" not in cut:
        return cut
    return cut.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def plain_data(data: Mapping[str, object]) -> dict[str, object]:
    """An operation's particulars as plain JSON values, at most 4 KiB; more is left out and said to be.

    Raises:
        TypeError: a value is none of text, integer, boolean, None, list and dict (bytes may be secrets; fractions have
            no form that every language writes alike), or a name is not ASCII text.
    """
    plain = {_name(name): _plain(value, _MAX_DEPTH) for name, value in data.items()}
    size = len(canonical_json(plain))
    return plain if size <= _MAX_DATA_BYTES else {"rpc": plain.get("rpc", ""), "left_out_bytes": size}


def _plain(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -MAX_INTEGER <= value <= MAX_INTEGER:
        return int(value)
    if isinstance(value, str):
        return plain_text(value, _MAX_DATA_BYTES)
    if depth > 0 and isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    if depth > 0 and isinstance(value, dict):
        return {_name(name): _plain(item, depth - 1) for name, item in value.items()}
    raise TypeError(f"an audit record cannot hold a {type(value).__name__} here: give text, integers, lists or dicts")


def _name(name: object) -> str:
    if not isinstance(name, str) or not name.isascii() or "\0" in name:
        raise TypeError("names in an audit record's data are ASCII text")
    return name
