"""Checkpoints: made in time, never of a chain that does not verify, and checkable through rotation."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from behaviorguard.quantum.v1 import key_service_pb2
from click.testing import CliRunner

from infra import pki
from infra.cli.audit import audit
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum import database
from servers.quantum.audit_reader import AuditReader
from servers.quantum.checkpoints import Checkpointer
from servers.quantum.security_events import SecurityEvents
from tests.support.audit import entry
from tests.support.quantum import ORGANIZATION, StandInHsm, running_quantum
from tests.support.threat import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.audit import Trails
    from tests.support.quantum import QuantumStores

KEY = "22222222-2222-4222-8222-222222222222"


@dataclass(frozen=True)
class Signer:
    """A key of the stand-in HSM."""

    key_handle: str
    key_id: str = KEY
    version: int = 1
    organization_id: str = ORGANIZATION


@asynccontextmanager
async def checkpointer(stores: QuantumStores, hsm: StandInHsm, **options: Any) -> AsyncIterator[Checkpointer]:
    """A checkpointer that does nothing by itself."""
    made = await hsm.generate(KEY, 1, "ML-DSA-65", ORGANIZATION)

    async def key() -> Signer:
        return Signer(made.key_handle)

    async with database.make_pool(stores.dsn, connections=2) as pool:
        yield Checkpointer(AuditReader(pool), hsm, key, SecurityEvents(pool), **options)


def places(stores: QuantumStores, organization: str) -> list[int]:
    found = stores.rows(
        "SELECT sequence FROM quantum_audit.checkpoints WHERE organization_id = %s ORDER BY sequence", organization
    )
    return [row[0] for row in found]


async def fill(trails: Trails, organization: str, count: int) -> None:
    async with trails() as trail:
        await asyncio.gather(*(trail.commit(entry(organization)) for _ in range(count)))


async def test_a_long_chain_is_covered_in_steps(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str
) -> None:
    await fill(trails, organization, 25)
    async with checkpointer(stores, hsm, every_records=10) as checkpoints:
        assert await checkpoints.make(organization) == 25
        assert await checkpoints.make(organization) == 0
    assert places(stores, organization) == [10, 20, 25]


async def test_records_bring_a_checkpoint_by_number_and_by_time(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str
) -> None:
    async with checkpointer(stores, hsm, every_records=10, every_seconds=3600) as checkpoints, trails() as trail:
        trail.on_appended(checkpoints.on_appended)
        task = asyncio.create_task(checkpoints.run())
        for _ in range(11):
            await trail.commit(entry(organization))
        await eventually(lambda: places(stores, organization) == [10] or places(stores, organization) == [10, 11])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with checkpointer(stores, hsm, every_records=100, every_seconds=0.05) as checkpoints:
        await fill(trails, organization, 1)
        task = asyncio.create_task(checkpoints.run())
        await eventually(lambda: places(stores, organization)[-1] == 12)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_two_services_make_each_checkpoint_once(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str
) -> None:
    await fill(trails, organization, 30)
    async with (
        checkpointer(stores, hsm, every_records=10) as one,
        checkpointer(stores, hsm, every_records=10) as two,
    ):
        await asyncio.gather(one.make(organization), two.make(organization))
    assert places(stores, organization) == [10, 20, 30]


@pytest.mark.parametrize(
    ("tampering", "first"),
    [
        ("UPDATE {log} SET result = 'success' WHERE organization_id = %s AND sequence = 7", 7),
        ("DELETE FROM {log} WHERE organization_id = %s AND sequence = 12", 12),
        ("UPDATE {log} SET previous_hash = record_hash WHERE organization_id = %s AND sequence = 3", 3),
        ("DELETE FROM {log} WHERE organization_id = %s AND sequence > 13", 14),
    ],
    ids=["changed", "dropped", "unlinked", "cut off"],
)
async def test_a_chain_that_does_not_verify_is_not_signed_and_raises(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str, tampering: str, first: int
) -> None:
    async with trails() as trail:
        for _ in range(15):
            await trail.commit(entry(organization, result="failure", reason="ERROR_REASON_INTERNAL"))
    log = "quantum_audit.quantum_operations_log"
    with psycopg.connect(stores.owner_dsn) as connection:  # as somebody who owns the database may
        connection.execute(f"ALTER TABLE {log} DISABLE TRIGGER USER".encode())
        connection.execute(tampering.format(log=log).encode(), (organization,))
        connection.execute(f"ALTER TABLE {log} ENABLE TRIGGER USER".encode())
    async with checkpointer(stores, hsm, every_records=5) as checkpoints:
        for _ in range(2):
            assert await checkpoints.make(organization) == 0
    assert places(stores, organization) == [place for place in (5, 10) if place < first]
    raised = stores.rows(
        "SELECT event_type::text, severity::text, event_data FROM quantum_security.security_events"
        " WHERE organization_id = %s",
        organization,
    )
    assert raised == [("audit_chain_broken", "critical", {"sequence": first})]


async def test_a_sealed_hsm_delays_checkpoints_and_nothing_else(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str
) -> None:
    await fill(trails, organization, 12)
    async with checkpointer(stores, hsm, every_records=10) as checkpoints:
        hsm.failure = MeshError(ErrorReason.ERROR_REASON_HSM_SEALED, "sealed")
        with pytest.raises(MeshError):
            await checkpoints.make(organization)
        hsm.failure = None
        assert await checkpoints.make(organization) == 12
    assert places(stores, organization) == [10, 12]


def test_checkpoints_stand_no_further_apart_than_a_proof_can_span(stores: QuantumStores, hsm: StandInHsm) -> None:
    for wrong in (0, 4097):
        with pytest.raises(ValueError, match="4096"):
            Checkpointer(None, hsm, None, None, every_records=wrong)  # type: ignore[arg-type]  # never used
    del stores


async def test_an_export_verifies_through_the_rotation_of_its_key(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = pki.issue(stores.pki, "operator")
    for name, path in (("CA", identity.ca), ("CERT", identity.cert), ("KEY", identity.key)):
        monkeypatch.setenv(f"BEHAVIORGUARD_TLS_{name}", str(path))
    file = tmp_path / "audit.jsonl"
    await fill(trails, ORGANIZATION, 3)
    async with running_quantum(stores, hsm, checkpoint_seconds=3600) as running:
        where = ("--address", f"localhost:{running.port}")
        exported = await asyncio.to_thread(CliRunner().invoke, audit, ["export", str(file), *where])
        assert exported.exit_code == 0, exported.output
        listed = await running.audit("operator").ListCheckpoints(pb.ListCheckpointsRequest(), timeout=5)
        key_id = listed.checkpoints[0].key_id
        await running.keys("operator").RotateKey(key_service_pb2.RotateKeyRequest(key_id=key_id), timeout=5)
        exported = await asyncio.to_thread(CliRunner().invoke, audit, ["export", str(file), *where])
        assert exported.exit_code == 0, exported.output
    checked = CliRunner().invoke(audit, ["verify", str(file), "--json"])
    report = json.loads(checked.stdout)
    assert report["ok"], report
    versions = {
        json.loads(line)["checkpoint"]["key_version"]
        for line in file.read_bytes().splitlines()
        if line.startswith(b'{"checkpoint"')
    }
    assert versions == {1, 2}
