"""How `behaviorguard audit` shows things."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from google.protobuf import json_format
from rich.console import Console
from rich.markup import escape

from servers.quantum.audit_export import checkpoint_line, record_line
from servers.quantum.audit_messages import checkpoint_of, record_of

if TYPE_CHECKING:
    from servers.quantum.audit_verify import Report

RESULT_COLOURS: Final = {"success": "green", "failure": "red", "partial": "yellow"}
"""Results, and what colour each is shown in."""


def print_record(screen: Console, record: pb.AuditRecord, *, as_json: bool) -> None:
    """A record as a line for people, or as its line in an export."""
    stored = record_of(record)
    if as_json:
        sys.stdout.write(record_line(stored).decode())
        sys.stdout.flush()
        return
    when = f"{stored.operation_timestamp:%Y-%m-%d %H:%M:%S}"
    said = stored.error_details or str(stored.operation_data.get("rpc", ""))
    who = stored.user_id or stored.service_id
    line = f"{stored.sequence:>8} {when} [{RESULT_COLOURS[stored.result]}]{stored.result:<7}[/] {stored.operation:<8}"
    screen.print(f"{line} {who} {stored.key_id or '-'} {escape(said)}", soft_wrap=True)


def print_checkpoint(screen: Console, checkpoint: pb.AuditCheckpoint, *, as_json: bool) -> None:
    """A checkpoint as a line for people, or as its line in an export."""
    if as_json:
        sys.stdout.write(checkpoint_line(checkpoint_of(checkpoint)).decode())
        return
    when = checkpoint.created_at.ToDatetime()
    signer = f"{checkpoint.algorithm} key {checkpoint.key_id}.{checkpoint.key_version}"
    screen.print(f"{checkpoint.sequence:>8} {when:%Y-%m-%d %H:%M:%S} {checkpoint.record_hash.hex()} {signer}")


def print_event(screen: Console, event: pb.SecurityEvent, *, as_json: bool) -> None:
    """A security event as a line for people, or as a JSON object."""
    kind = pb.SecurityEventType.Name(event.event_type).removeprefix("SECURITY_EVENT_TYPE_").lower()
    severity = pb.Severity.Name(event.severity).removeprefix("SEVERITY_").lower()
    when = event.event_timestamp.ToDatetime().isoformat(timespec="seconds") + "Z"
    state = "closed" if event.HasField("resolved_at") else "open"
    if as_json:
        known = {"event_id": event.event_id, "event_type": kind, "severity": severity, "event_timestamp": when}
        data = json_format.MessageToDict(event.event_data)
        more = {"state": state, "key_id": event.key_id, "user_id": event.user_id, "event_data": data}
        sys.stdout.write(json.dumps(known | more) + "\n")
        return
    screen.print(f"{when} {severity:<8} {state:<6} {kind} {event.key_id or event.user_id or '-'} {event.event_id}")


def report_object(report: Report) -> dict[str, object]:
    """What a check found, for `--json`."""
    names = (
        "organization_id",
        "records",
        "checkpoints",
        "first_sequence",
        "last_sequence",
        "signed_through",
        "pinned_through",
        "problems",
        "limits",
    )
    found = {name: getattr(report, name) for name in names}
    return {"ok": report.ok, **found, "problem": None if report.problem is None else asdict(report.problem)}


def print_report(report: Report) -> None:
    """What a check found, and what it cannot know."""
    screen = Console(highlight=False, soft_wrap=True)
    whose = escape(report.organization_id)
    held = f"{report.records} records, {report.first_sequence} to {report.last_sequence}, of {whose}"
    if report.problem is None:
        screen.print(f"[green]whole[/]: {held}")
        screen.print(f"  signed through record {report.signed_through}" if report.signed_through else "  not signed")
        if report.pinned_through:
            screen.print(f"  as known from elsewhere through record {report.pinned_through}")
    else:
        found = report.problem
        screen.print(f"[red]broken[/]: {escape(found.text)}")
        screen.print(
            f"  {found.kind}, line {found.line}" + (f", record {escape(found.audit_id)}" if found.audit_id else "")
        )
        if report.problems > 1:
            screen.print(f"  and {report.problems - 1} more after it; {held}")
    for limit in report.limits:
        screen.print(f"  - {escape(limit)}", style="dim")
