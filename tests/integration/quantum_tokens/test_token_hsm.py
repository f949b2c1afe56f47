"""Tokens signed by a real HSM."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from behaviorguard.quantum.v1 import key_service_pb2

from tests.support.hsm import running_hsm
from tests.support.mesh import reason_of, refused
from tests.support.quantum import running_quantum
from tests.support.tokens import check, eventually, order

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores


async def test_with_a_real_hsm_through_rotation_sealing_and_revocation(stores: QuantumStores) -> None:
    """The whole way: two processes of the service, one HSM over its channel, stores of their own."""
    async with (
        running_hsm(stores.rig) as hsm,
        running_quantum(stores, hsm_port=hsm.port) as one,
        running_quantum(stores, hsm_port=hsm.port) as two,
    ):
        tokens, there = one.tokens(), two.tokens()
        first, second = await asyncio.gather(tokens.GenerateToken(order()), there.GenerateToken(order()))
        key_id = first.quantum_signature.key_id
        assert key_id == second.quantum_signature.key_id  # both asked for the first key at once: there is one
        await one.keys().RotateKey(key_service_pb2.RotateKeyRequest(key_id=key_id))
        third = await tokens.GenerateToken(order())
        assert third.quantum_signature.key_version == 2
        for token in (first, second, third):
            for where in (tokens, there):
                assert (await where.VerifyToken(check(token.hybrid_token))).valid
        await hsm.operator.seal()
        assert (await there.VerifyToken(check(first.hybrid_token))).valid
        async with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await tokens.GenerateToken(order())
        assert reason_of(errors[0]) == "ERROR_REASON_HSM_SEALED"
        await hsm.operator.unseal(stores.rig.share)
        await one.keys().RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=key_id, reason="test"))

        async def over() -> bool:
            return not (await there.VerifyToken(check(third.hybrid_token))).valid

        assert not (await tokens.VerifyToken(check(third.hybrid_token))).valid
        await eventually(over)
        assert (await there.VerifyToken(check((await there.GenerateToken(order())).hybrid_token))).valid
