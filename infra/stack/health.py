"""Asking a service how it is, with a deadline."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infra.stack.ports import LOOPBACK

if TYPE_CHECKING:
    from infra.pki import Identity

ANSWER_SECONDS = 3.0


def serves_grpc(port: int, who: Identity, seconds: float = ANSWER_SECONDS) -> bool:
    """Tell whether the gRPC server on a port says SERVING; `who` is the certificate to ask with."""
    credentials = grpc.ssl_channel_credentials(who.ca.read_bytes(), who.key.read_bytes(), who.cert.read_bytes())
    # A channel of its own each time: a shared one would report its own back-off instead of the server's state.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"{LOOPBACK}:{port}", credentials, options) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # made at run time
                health_pb2.HealthCheckRequest(), timeout=seconds, wait_for_ready=False
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def serves_http(port: int, path: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Tell whether an HTTP server on a port answers a path with 200."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=seconds)
    try:
        connection.request("GET", path, headers={"Host": f"localhost:{port}"})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
