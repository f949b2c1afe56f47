"""Chains and exports made in memory."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import SigningKey, provider_named
from servers.quantum.audit_chain import (
    CHECKPOINT_CONTEXT,
    FIRST_PREVIOUS,
    AuditRecord,
    Checkpoint,
    checkpoint_message,
    record_hash,
)
from servers.quantum.audit_export import CheckpointKey, checkpoint_line, end_line, header_line, record_line
from servers.quantum.audit_verify import ExportVerifier, Pins, Report

ORGANIZATION = "11111111-1111-4111-8111-111111111111"
KEY_ID = "22222222-2222-4222-8222-222222222222"
BEGIN = datetime(2026, 11, 23, 2, 26, 7, 123456, tzinfo=UTC)


@cache
def signing_key(number: int = 1) -> SigningKey:
    """An ML-DSA-65 key, the same for each number."""
    return provider_named("cryptography").signing_key(Algorithm.ML_DSA_65, bytes([number]) * 32)


def public_key(number: int = 1, *, named: bool = True) -> CheckpointKey:
    """The public half."""
    raw = signing_key(number).public_bytes
    return CheckpointKey(raw, key_id=KEY_ID, key_version=1) if named else CheckpointKey(raw)


def verify(key: CheckpointKey, message: bytes, signature: bytes, context: bytes) -> bool:
    """Check a signature as the command line does."""
    provider = provider_named("cryptography")
    return provider.verifying_key(Algorithm(key.algorithm), key.public_key).verify(message, signature, context)


def make_chain(count: int, *, first: int = 1, previous: bytes = FIRST_PREVIOUS, **changes: Any) -> list[AuditRecord]:
    """A chain of so many records."""
    records = []
    for number in range(first, first + count):
        record = AuditRecord(
            audit_id=str(uuid.UUID(int=number)),
            operation="encrypt",
            key_id=KEY_ID,
            user_id="",
            organization_id=ORGANIZATION,
            service_id="identity",
            operation_timestamp=BEGIN + timedelta(seconds=number),
            source_ip="192.0.2.1",
            user_agent="A browser",
            correlation_id=str(uuid.UUID(int=number + 1000)),
            operation_data={"bytes": number, "algorithm": "ML-KEM-768"},
            result="success",
            processing_time_ms=3,
            error_details="",
            hsm_operation_id="",
            sequence=number,
            previous_hash=previous,
            record_hash=b"",
        )
        record = hashed(replace(record, **changes))
        previous = record.record_hash
        records.append(record)
    return records


def hashed(record: AuditRecord) -> AuditRecord:
    """The record with the hash that it must carry."""
    return replace(record, record_hash=record_hash(record))


def rehashed(records: list[AuditRecord]) -> list[AuditRecord]:
    """The chain made anew, as somebody would who can compute hashes."""
    previous, again = FIRST_PREVIOUS, []
    for number, record in enumerate(records, 1):
        made = hashed(replace(record, sequence=number, previous_hash=previous))
        previous = made.record_hash
        again.append(made)
    return again


def make_checkpoint(record: AuditRecord, number: int = 1) -> Checkpoint:
    """A signed checkpoint of a record, by the key of that number."""
    unsigned = Checkpoint(record.organization_id, record.sequence, record.record_hash, BEGIN, KEY_ID, 1, "ML-DSA-65")
    return replace(unsigned, signature=signing_key(number).sign(checkpoint_message(unsigned), CHECKPOINT_CONTEXT))


def export(
    records: list[AuditRecord], checkpoints: list[Checkpoint], keys: list[CheckpointKey] | None = None
) -> list[bytes]:
    """An export's lines."""
    signed = {checkpoint.sequence: checkpoint for checkpoint in checkpoints}
    lines = [header_line(ORGANIZATION, BEGIN, [public_key()] if keys is None else keys)]
    for record in records:
        lines.append(record_line(record))
        if record.sequence in signed:
            lines.append(checkpoint_line(signed[record.sequence]))
    lines.append(end_line(len(records), len(checkpoints), records[-1].sequence if records else 0))
    return lines


def check(lines: list[bytes], **pins: Any) -> Report:
    """What the verifier says."""
    return ExportVerifier(verify, Pins(**pins)).read(lines)
