"""The audit trail's contract messages from what is stored, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from google.protobuf import json_format

from servers.quantum.audit_chain import AuditRecord, Checkpoint
from servers.quantum.audit_reader import RecordFilter
from servers.quantum.audit_trail import AuditEntry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from servers.quantum.security_events import SecurityEvent

_CEREMONIES: Final = frozenset({"Initialize", "Unseal", "Seal", "ExportBackup", "RestoreBackup"})
_HSM: Final = "hsm"
_RESULTS: Final = {
    pb.OperationResult.OPERATION_RESULT_SUCCESS: "success",
    pb.OperationResult.OPERATION_RESULT_FAILURE: "failure",
    pb.OperationResult.OPERATION_RESULT_PARTIAL: "partial",
}


def _labels(values: Sequence[tuple[str, int]], prefix: str) -> Mapping[str, int]:
    """An enum's numbers by the labels that the database knows: names in lower case, without their prefix."""
    return {name.removeprefix(prefix).lower(): number for name, number in values if number}


OPERATIONS: Final = _labels(pb.QuantumOperation.items(), "QUANTUM_OPERATION_")
KINDS: Final = _labels(pb.SecurityEventType.items(), "SECURITY_EVENT_TYPE_")
SEVERITIES: Final = _labels(pb.Severity.items(), "SEVERITY_")
_RESULT_NUMBERS: Final = {label: number for number, label in _RESULTS.items()}
_OPERATION_LABELS: Final = {number: label for label, number in OPERATIONS.items()}
_KIND_LABELS: Final = {number: label for label, number in KINDS.items()}
_SEVERITY_LABELS: Final = {number: label for label, number in SEVERITIES.items()}


def record_message(record: AuditRecord) -> pb.AuditRecord:
    """A record as the contract's message."""
    message = pb.AuditRecord(
        audit_id=record.audit_id,
        operation=OPERATIONS[record.operation],  # type: ignore[arg-type]  # the enum's own number
        key_id=record.key_id,
        user_id=record.user_id,
        organization_id=record.organization_id,
        service_id=record.service_id,
        source_ip=record.source_ip,
        user_agent=record.user_agent,
        correlation_id=record.correlation_id,
        result=_RESULT_NUMBERS[record.result],
        processing_time_ms=record.processing_time_ms,
        error_details=record.error_details,
        hsm_operation_id=record.hsm_operation_id,
        sequence=record.sequence,
        previous_hash=record.previous_hash,
        record_hash=record.record_hash,
    )
    message.operation_timestamp.FromDatetime(record.operation_timestamp)
    json_format.ParseDict(dict(record.operation_data), message.operation_data)
    return message


def record_of(message: pb.AuditRecord) -> AuditRecord:
    """The record in a message, in the form that was hashed.

    Raises:
        KeyError: it names an operation or result that this version does not know.
    """
    return AuditRecord(
        audit_id=message.audit_id,
        operation=_OPERATION_LABELS[message.operation],
        key_id=message.key_id,
        user_id=message.user_id,
        organization_id=message.organization_id,
        service_id=message.service_id,
        operation_timestamp=_moment(message.operation_timestamp),
        source_ip=message.source_ip,
        user_agent=message.user_agent,
        correlation_id=message.correlation_id,
        operation_data=_whole(json_format.MessageToDict(message.operation_data)),
        result=_RESULTS[message.result],
        processing_time_ms=message.processing_time_ms,
        error_details=message.error_details,
        hsm_operation_id=message.hsm_operation_id,
        sequence=message.sequence,
        previous_hash=message.previous_hash,
        record_hash=message.record_hash,
    )


def checkpoint_of(message: pb.AuditCheckpoint) -> Checkpoint:
    """The checkpoint in a message."""
    return Checkpoint(
        message.organization_id,
        message.sequence,
        message.record_hash,
        _moment(message.created_at),
        message.key_id,
        message.key_version,
        message.algorithm,
        message.signature,
    )


def checkpoint_message(checkpoint: Checkpoint) -> pb.AuditCheckpoint:
    """A checkpoint as the contract's message."""
    message = pb.AuditCheckpoint(
        organization_id=checkpoint.organization_id,
        sequence=checkpoint.sequence,
        record_hash=checkpoint.record_hash,
        key_id=checkpoint.key_id,
        key_version=checkpoint.key_version,
        algorithm=checkpoint.algorithm,
        signature=checkpoint.signature,
    )
    message.created_at.FromDatetime(checkpoint.created_at)
    return message


def event_message(event: SecurityEvent) -> pb.SecurityEvent:
    """A security event as the contract's message; kinds that the contract does not know are unspecified."""
    message = pb.SecurityEvent(
        event_id=event.event_id,
        event_type=KINDS.get(event.kind, 0),  # type: ignore[arg-type]  # the enum's own number
        severity=SEVERITIES[event.severity],  # type: ignore[arg-type]  # the enum's own number
        key_id=event.key_id,
        user_id=event.user_id,
        organization_id=event.organization_id,
        response_action=event.response_action,
        correlation_id=event.correlation_id,
    )
    message.event_timestamp.FromDatetime(event.event_timestamp)
    if event.resolved_at is not None:
        message.resolved_at.FromDatetime(event.resolved_at)
    json_format.ParseDict(dict(event.event_data), message.event_data)
    return message


def filter_of(request: pb.ListAuditRecordsRequest, organization_id: str) -> RecordFilter:
    """Which records a request asks for."""
    return RecordFilter(
        organization_id,
        operation=_OPERATION_LABELS.get(request.operation, ""),
        result=_RESULTS.get(request.result, ""),
        key_id=request.key_id.lower(),
        user_id=request.user_id.lower(),
        correlation_id=request.correlation_id.lower(),
        start=_moment(request.start_time) if request.HasField("start_time") else None,
        end=_moment(request.end_time) if request.HasField("end_time") else None,
    )


def kind_label(kind: pb.SecurityEventType.ValueType) -> str:
    """Label of a kind of event; empty when unset."""
    return _KIND_LABELS.get(kind, "")


def severity_label(severity: pb.Severity.ValueType) -> str:
    """Label of the least severity that is asked for."""
    return _SEVERITY_LABELS.get(severity, "low")


def entry_of(request: pb.AppendAuditRecordRequest, caller: str) -> AuditEntry:
    """What another service's record says."""
    rpc = request.method.removeprefix("/")
    ceremony = caller == _HSM and rpc.rpartition("/")[2] in _CEREMONIES
    return AuditEntry(
        operation="ceremony" if ceremony else "call",
        organization_id=request.organization_id,
        correlation_id=request.correlation_id,
        service_id=caller,
        result=_RESULTS[request.result],
        user_id=request.user_id,
        source_ip=request.source_ip,
        user_agent=request.user_agent,
        data={"rpc": rpc},
        processing_time_ms=request.processing_time_ms,
        reason=request.reason,
        occurred_at=_moment(request.operation_timestamp),
    )


def _whole(value: Any) -> Any:
    """Numbers of a `Struct` are all floating point; those of audit records were integers."""
    if isinstance(value, float):
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value


def _moment(timestamp: Timestamp) -> datetime:
    moment: datetime = timestamp.ToDatetime(UTC)
    return moment
