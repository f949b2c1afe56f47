"""The development authority: issues each service the certificate that says who it is.

Files in one folder: `ca.crt`, `ca.key`, and `<service>.crt`, `<service>.key` for each service. Keys are readable by
their owner alone.
Leaves are ECDSA P-256 (TLS stacks do not take ML-DSA leaves yet), carry `spiffe://behaviorguard/<service>` and serve
both ends of a connection.
A production mesh replaces this folder by what its own authority (SPIRE, a cloud CA) issues; servers read the same
three files.
"""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRUST_DOMAIN: Final = "behaviorguard"
AUTHORITY_DAYS: Final = 3650
LEAF_DAYS: Final = 90
RENEW_BEFORE_DAYS: Final = 30
_BACKDATE: Final = timedelta(minutes=5)  # tolerates clocks that run a little behind
_SERVICE = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Where a service's proof of identity lies."""

    ca: Path
    """Certificate of the authority, PEM."""
    cert: Path
    """Certificate, PEM."""
    key: Path
    """Private key, PKCS #8 PEM, mode 0600."""

    def environment(self) -> dict[str, str]:
        """The settings that make a server use this identity."""
        return {
            "BEHAVIORGUARD_TLS_CA": str(self.ca),
            "BEHAVIORGUARD_TLS_CERT": str(self.cert),
            "BEHAVIORGUARD_TLS_KEY": str(self.key),
        }


def identity(folder: Path, service: str) -> Identity:
    """Where the files of `service` lie, issued or not.

    Raises:
        ValueError: the name is not one of lower-case letters, digits and hyphens.
    """
    if not _SERVICE.fullmatch(service):
        raise ValueError(
            f"service name {service!r}: use lower-case letters, digits and hyphens, starting with a letter"
        )
    return Identity(folder / "ca.crt", folder / f"{service}.crt", folder / f"{service}.key")


def ensure_authority(folder: Path) -> Path:
    """Create the authority if it is missing, unreadable or close to its end; returns the path of its certificate.

    A new authority makes every leaf invalid: call `issue` for each service afterwards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with _locked(folder):
        if not _authority_is_good(folder):
            _create_authority(folder)
    return folder / "ca.crt"


def issue(folder: Path, service: str, *, now: datetime | None = None) -> Identity:
    """Give `service` a certificate, or renew one that is missing, foreign or within 30 days of its end.

    Args:
        folder: where `ensure_authority` wrote the authority.
        service: name of the workload, the last segment of its SPIFFE URI.
        now: the time to issue at; None takes the clock. Tests issue expired certificates with it.

    Raises:
        ValueError: the name is not allowed.
        FileNotFoundError: there is no authority in the folder; call `ensure_authority` first.
    """
    files = identity(folder, service)
    moment = now or datetime.now(UTC)
    with _locked(folder):
        authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
        if not _leaf_is_good(files, authority, moment):
            _create_leaf(files, authority, _load_key(folder / "ca.key"), service, moment)
    return files


def days_left(certificate: Path) -> float:
    """Days until a PEM certificate ends; negative when it has ended."""
    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return (ends - datetime.now(UTC)) / timedelta(days=1)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time write the folder: two starts at once must not issue from two authorities."""
    import fcntl  # noqa: PLC0415 -- POSIX only; the module must import elsewhere for its readers

    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _authority_is_good(folder: Path) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = _load_key(folder / "ca.key")
    except (FileNotFoundError, ValueError):
        return False
    same = certificate.public_key() == key.public_key()
    return same and certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(days=LEAF_DAYS)


def _leaf_is_good(files: Identity, authority: x509.Certificate, now: datetime) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate(files.cert.read_bytes())
        key = _load_key(files.key)
        leaf.verify_directly_issued_by(authority)
    except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
        return False
    return leaf.public_key() == key.public_key() and leaf.not_valid_after_utc - now > timedelta(days=RENEW_BEFORE_DAYS)


def _create_authority(folder: Path) -> None:
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "BehaviorGuard development authority")])
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _pem(key), 0o600)
    _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _create_leaf(
    files: Identity, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, service: str, now: datetime
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, service)])
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/{service}"),
        x509.DNSName("localhost"),
        x509.DNSName(service),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(name, authority.subject, key.public_key(), now, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(files.key, _pem(key), 0o600)
    _write(files.cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path.name} is not an elliptic-curve key: delete it and start again")  # noqa: TRY004 -- a damaged file, not a wrong argument
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace the file in one step; at no moment is it readable by more than `mode` says."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    temporary.replace(path)
