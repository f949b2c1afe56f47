"""`behaviorguard.quantum.v1.TemplateService`: messages in, domain calls, messages out."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from behaviorguard.quantum.v1 import template_service_pb2 as pb
from behaviorguard.quantum.v1.template_service_pb2_grpc import TemplateServiceServicer

from servers.crypto.algorithms import Algorithm, canonical
from servers.mesh.context import CallContext, call_context
from servers.mesh.errors import ErrorReason, FieldProblem, MeshError
from servers.quantum.envelope import SUITES
from servers.quantum.templates import Clear, Closed, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpc import aio

    from servers.quantum.templates import Taken, Templates

    Context = aio.ServicerContext[Any, Any]


class TemplateService(TemplateServiceServicer):
    """One short method per RPC; who may call what stands in the contract."""

    def __init__(self, templates: Templates) -> None:
        self._templates = templates

    async def EncryptTemplate(  # noqa: N802 - gRPC's names are the contract's
        self, request: pb.EncryptTemplateRequest, context: Context
    ) -> pb.EncryptTemplateResponse:
        """Encrypts a template for a person."""
        del context
        call = call_context()
        _note(call, request.user_id, request.key_id)
        closed = await self._templates.encrypt(_organization(call), _clear(request))
        _note_closed(call, closed, len(request.biometric_template))
        return _encrypted(closed)

    async def EncryptBiometric(  # noqa: N802
        self, request: pb.EncryptBiometricRequest, context: Context
    ) -> pb.EncryptBiometricResponse:
        """Encrypts a template for a person and a device."""
        del context
        call = call_context()
        _note(call, request.user_id)
        data = request.biometric_template.data
        if not data:
            problem = FieldProblem("biometric_template.data", "the template itself is missing", "BYTES_MIN_LEN")
            raise MeshError(
                ErrorReason.ERROR_REASON_INVALID_FIELD, "the request breaks a rule of its fields", fields=(problem,)
            )
        clear = Clear(
            request.user_id,
            data,
            request.device_id,
            _algorithm(request.algorithm),
            security_level=request.security_level,
        )
        closed = await self._templates.encrypt(_organization(call), clear)
        _note_closed(call, closed, len(data))
        key = closed.key
        return pb.EncryptBiometricResponse(
            encrypted_biometric=pb.QuantumEncryptedBiometric(
                encrypted_template=closed.envelope,
                public_key=key.newest.public_key,
                ciphertext=closed.kem_ciphertext,
                auth_tag=closed.tag,
                key_version=key.newest.number,
            ),
            key_id=key.key_id,
            encryption_algorithm=SUITES[key.algorithm.value].name,
            quantum_secured=True,
            security_level=key.security_level,
        )

    async def DecryptTemplate(  # noqa: N802
        self, request: pb.DecryptTemplateRequest, context: Context
    ) -> pb.DecryptTemplateResponse:
        """Opens an envelope."""
        del context
        call = call_context()
        _note(call, request.user_id)
        taken = await self._templates.decrypt(_organization(call), _request(request))
        call.audit.key_id, call.audit.hsm_operation_id = taken.key_id, taken.hsm_operation_id
        call.audit.data = {"key_version": taken.key_version}
        return _decrypted(taken)

    async def BatchEncryptTemplates(  # noqa: N802
        self, request: pb.BatchEncryptTemplatesRequest, context: Context
    ) -> pb.BatchEncryptTemplatesResponse:
        """Encrypts templates, each with its own result."""
        del context
        call = call_context()
        results: list[Closed | MeshError] = []
        answer = pb.BatchEncryptTemplatesResponse()
        # Megabytes: each template is read when it is its turn, and answered at once.
        clears = (_clear(each) for each in request.requests)
        async with aclosing(self._templates.encrypt_many(_organization(call), clears)) as closed:
            async for result in closed:
                results.append(result)
                if isinstance(result, MeshError):
                    answer.results.add(reason=result.reason_name)
                else:
                    answer.results.add(encrypted=_encrypted(result))
        _note_batch(call, results)
        return answer

    async def BatchDecryptTemplates(  # noqa: N802
        self, request: pb.BatchDecryptTemplatesRequest, context: Context
    ) -> pb.BatchDecryptTemplatesResponse:
        """Opens envelopes, each with its own result."""
        del context
        call = call_context()
        asked = (_request(each) for each in request.requests)
        results = await self._templates.decrypt_many(_organization(call), asked)
        _note_batch(call, results)
        answer = pb.BatchDecryptTemplatesResponse()
        for result in results:
            if isinstance(result, MeshError):
                answer.results.add(reason=result.reason_name)
            else:
                answer.results.add(decrypted=_decrypted(result))
        return answer


def _organization(call: CallContext) -> str:
    return call.organization_id.lower()


def _algorithm(name: str) -> Algorithm | None:
    return canonical(name) if name else None


def _clear(request: pb.EncryptTemplateRequest) -> Clear:
    return Clear(
        request.user_id, request.biometric_template, request.device_id, _algorithm(request.algorithm), request.key_id
    )


def _request(request: pb.DecryptTemplateRequest) -> Request:
    return Request(request.user_id, request.encrypted_template, request.device_id)


def _encrypted(closed: Closed) -> pb.EncryptTemplateResponse:
    key = closed.key
    return pb.EncryptTemplateResponse(
        encrypted_template=closed.envelope,
        public_key=key.newest.public_key,
        key_id=key.key_id,
        security_level=key.security_level,
        algorithm=key.algorithm.value,
        key_version=key.newest.number,
    )


def _decrypted(taken: Taken) -> pb.DecryptTemplateResponse:
    return pb.DecryptTemplateResponse(
        biometric_template=taken.template, key_id=taken.key_id, key_version=taken.key_version
    )


def _note(call: CallContext, user_id: str, key_id: str = "") -> None:
    call.audit.user_id, call.audit.key_id = user_id, key_id


def _note_closed(call: CallContext, closed: Closed, size: int) -> None:
    key = closed.key
    call.audit.key_id = key.key_id
    call.audit.data = {"algorithm": key.algorithm.value, "key_version": key.newest.number, "bytes": size}


def _note_batch(call: CallContext, results: Sequence[Closed | Taken | MeshError]) -> None:
    """One record for the batch: which keys, how many, and why those that were refused."""
    failed = Counter(result.reason_name for result in results if isinstance(result, MeshError))
    done = (result for result in results if not isinstance(result, MeshError))
    keys = sorted({each.key.key_id if isinstance(each, Closed) else each.key_id for each in done})
    call.audit.data = {"items": len(results), "refused": dict(failed), "key_ids": [*keys]}
    if len(keys) == 1:
        call.audit.key_id = keys[0]
    if failed:
        call.audit.result = "partial"
