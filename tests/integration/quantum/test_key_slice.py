"""From a key's making to a template out of its envelope, over real sockets and stores."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from behaviorguard.quantum.v1 import template_service_pb2 as templates_pb

from tests.support.quantum import ORGANIZATION, master_key, running_quantum, service_key

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores


async def test_a_template_goes_into_an_envelope_and_out_again(stores: QuantumStores) -> None:
    user = str(uuid.uuid4())
    async with running_quantum(stores) as quantum:
        keys, templates = quantum.keys(), quantum.templates()
        await keys.GenerateKey(master_key())
        made = await keys.GenerateKey(service_key(algorithm="Kyber768"))
        closed = await templates.EncryptTemplate(
            templates_pb.EncryptTemplateRequest(user_id=user, biometric_template=b"a face")
        )
        opened = await templates.DecryptTemplate(
            templates_pb.DecryptTemplateRequest(user_id=user, encrypted_template=closed.encrypted_template)
        )
    assert (made.algorithm, made.security_level, made.quantum_secured) == ("ML-KEM-768", "NIST-L3", True)
    assert (len(made.public_key), made.version) == (1184, 1)
    assert closed.key_id == made.key_id
    assert opened.biometric_template == b"a face"
    records = stores.rows(
        "SELECT operation::text, result::text, key_id::text FROM quantum_audit.quantum_operations_log"
        " WHERE organization_id = %s ORDER BY sequence DESC LIMIT 4",
        ORGANIZATION,
    )
    assert [row[:2] for row in reversed(records)] == [
        ("keygen", "success"),
        ("keygen", "success"),
        ("encrypt", "success"),
        ("decrypt", "success"),
    ]
    assert [row[2] for row in records[:3]] == [made.key_id] * 3
