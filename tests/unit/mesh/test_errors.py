"""Every reason of the contract has a code and a next step, and every error fits on the wire."""

from __future__ import annotations

import base64

import grpc
import pytest
from google.rpc import error_details_pb2

from servers.mesh.errors import ERROR_DOMAIN, ErrorReason, FieldProblem, MeshError, status_code, suggested_action


@pytest.mark.parametrize("reason", ErrorReason.values())
def test_every_reason_has_a_code_and_a_next_step(reason: ErrorReason.ValueType) -> None:
    assert status_code(reason) is not grpc.StatusCode.OK
    assert suggested_action(reason).endswith(".")


def test_an_error_carries_its_details() -> None:
    problem = FieldProblem("user_id", "must be a UUID", "STRING_UUID")
    error = MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, "invalid: user_id", fields=[problem], retry_after_s=0.25)
    status = error.to_status("id-1")
    names = [detail.TypeName().rpartition(".")[2] for detail in status.details]
    assert names == ["ErrorInfo", "RequestInfo", "LocalizedMessage", "BadRequest", "RetryInfo"]
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (info.domain, info.reason) == (ERROR_DOMAIN, "ERROR_REASON_INVALID_FIELD")


def test_the_worst_error_fits_into_metadata() -> None:
    problems = [FieldProblem(f"events[{n}].{'x' * 1000}", "too long " * 100, "RULE_" * 10) for n in range(1000)]
    status = MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, "m" * 5000, fields=problems).to_status("i" * 64)
    assert len(base64.b64encode(status.SerializeToString())) < 7000
