"""Field rules of the contract (protovalidate), turned into field problems that callers can act on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import protovalidate

from servers.mesh.errors import ErrorReason, FieldProblem, MeshError

if TYPE_CHECKING:
    from google.protobuf.message import Message

_NOT_A_REASON: Final = re.compile(r"[^A-Z0-9]+")


class MessageValidator:
    """Checks messages against the rules that their proto declares; rules are compiled once a message type."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def check(self, message: Message) -> None:
        """Return when the message keeps all rules.

        Raises:
            MeshError: INVALID_FIELD, with one problem for each broken rule; values are never repeated.
        """
        violations = self._validator.collect_violations(message)
        if violations:
            problems = [_problem(violation) for violation in violations]
            names = ", ".join(dict.fromkeys(problem.field or "request" for problem in problems[:3]))
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, f"invalid: {names}{more}", fields=problems)


def _problem(violation: protovalidate.Violation) -> FieldProblem:
    said = violation.proto
    path: list[str] = []
    for element in said.field.elements if said.field is not None else ():
        index = element.subscript
        # A map's key is the caller's text and stays out of the answer.
        suffix = "" if index is None else f"[{index.value}]" if index.field == "index" else "[key]"
        path.append(f"{element.field_name}{suffix}")
    reason = _NOT_A_REASON.sub("_", said.rule_id.upper()).strip("_")
    return FieldProblem(".".join(path), said.message or f"breaks the rule {said.rule_id}", reason)
