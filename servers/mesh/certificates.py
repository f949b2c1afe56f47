"""The workload's own certificate, read from its files, and read again when it is renewed."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, NamedTuple

import grpc

from servers.mesh.errors import OperatorError

if TYPE_CHECKING:
    from servers.mesh.settings import MeshSettings

_log = logging.getLogger(__name__)


class Proof(NamedTuple):
    """What proves who we are, and whom we believe: PEM."""

    authority: bytes
    key: bytes
    certificate: bytes


def read_proof(settings: MeshSettings) -> Proof:
    """Read the three files.

    Raises:
        OperatorError: one of them cannot be read, or key and certificate do not belong together.
    """
    try:
        proof = Proof(settings.tls_ca.read_bytes(), settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
    except ssl.SSLError as error:
        raise OperatorError(
            f"{settings.tls_cert} and {settings.tls_key} do not belong together or are damaged: issue them again"
        ) from error
    except OSError as error:
        raise OperatorError(
            f"cannot read {error.filename}: point BEHAVIORGUARD_TLS_CA, _TLS_CERT and _TLS_KEY at this service's files"
        ) from error
    return proof


class ServerCertificate:
    """Credentials that follow the files: a renewed certificate serves the next connection, without a restart."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._proof = read_proof(settings)

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`: every client must show a certificate of our authority."""
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._renewed, True)  # type: ignore[arg-type]  # None is allowed

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        proof = self._proof
        return grpc.ssl_server_certificate_configuration([(proof.key, proof.certificate)], proof.authority)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, in a thread of its own, for each new connection; None: nothing has changed."""
        try:
            proof = read_proof(self._settings)
        except OperatorError:  # half written: the old one serves until the new one is whole
            _log.warning("a certificate file cannot be read: the one in use is kept", exc_info=True)
            return None
        if proof == self._proof:
            return None
        self._proof = proof
        _log.info("the certificate was renewed")
        return self._configuration()
