"""A real HSM in this process, and who calls it."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from infra import pki
from infra.hsm import HsmOperator, ensure_unsealed, hsm_operator
from servers.crypto.provider import provider_named
from servers.crypto.sealing import seal
from servers.hsm.app import hsm_app
from servers.hsm.settings import HsmSettings
from servers.mesh.limits import Unlimited
from servers.mesh.settings import MeshSettings
from servers.quantum.hsm import HsmClient, hsm_channel
from servers.quantum.ports import GeneratedKey, SealedItem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from servers.crypto.algorithms import Algorithm

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "behaviorguard-test"
ORGANIZATION = "00000000-0000-4000-8000-000000000001"
OTHER_ORGANIZATION = "00000000-0000-4000-8000-000000000002"
INFO = b"test"


@dataclass
class HsmRig:
    """Where an HSM's modules lie, and how its back end is set."""

    folder: Path
    pki: Path
    backend: dict[str, Any] = field(default_factory=dict)
    share: str = ""
    """The only share of an HSM that `running_hsm` initialised."""

    @property
    def modules(self) -> list[Path]:
        """The three modules' folders."""
        return [self.folder / f"module-{number}" for number in (1, 2, 3)]

    def settings(self, **changes: Any) -> HsmSettings:
        """Settings of an HSM over these modules."""
        identity = pki.issue(self.pki, "hsm")
        values: dict[str, Any] = {
            "port": 0,
            "tls_ca": identity.ca,
            "tls_cert": identity.cert,
            "tls_key": identity.key,
            "hsm_modules": tuple(self.modules),
            "hsm_harden": False,  # would forbid debuggers and core files for the whole test process
            "drain_seconds": 2.0,
            "health_interval_seconds": 0.2,
            "upkeep_seconds": 3600.0,
        }
        return HsmSettings(**(values | self.backend | changes))

    def files(self, module: int = 0) -> list[Path]:
        """The sealed files of a module."""
        return sorted((self.modules[module] / "keys").rglob("*.seal"))


@dataclass
class RunningHsm:
    """An HSM that listens."""

    port: int
    rig: HsmRig
    operator: HsmOperator
    _stack: AsyncExitStack

    async def client(self, caller: str = "quantum", **changes: Any) -> HsmClient:
        """Call it as the quantum service does."""
        channel = hsm_channel(mesh_settings(self.rig.pki, caller), f"127.0.0.1:{self.port}")
        self._stack.push_async_callback(channel.close)
        client = HsmClient(channel, provider_named("cryptography"), caller=caller, **changes)
        self._stack.push_async_callback(client.close)
        return client

    async def as_workload(self, caller: str) -> HsmOperator:
        """Call it with another workload's certificate."""
        identity = pki.issue(self.rig.pki, caller)
        return await self._stack.enter_async_context(hsm_operator(f"127.0.0.1:{self.port}", identity, caller))


@asynccontextmanager
async def running_hsm(rig: HsmRig, *, unsealed: bool = True, **changes: Any) -> AsyncIterator[RunningHsm]:
    """The HSM in this process, over real sockets; initialised with one share and unsealed unless told otherwise."""
    async with hsm_app(rig.settings(**changes), limiter=Unlimited()) as server:
        port = await server.start()
        try:
            async with AsyncExitStack() as stack:
                identity = pki.issue(rig.pki, "operator")
                operator = await stack.enter_async_context(hsm_operator(f"127.0.0.1:{port}", identity))
                if unsealed:
                    if not rig.share:
                        rig.share = (await operator.initialize(1, 1)).shares[0]
                    await operator.unseal(rig.share)
                yield RunningHsm(port, rig, operator, stack)
        finally:
            await server.drain()


@cache
def softhsm() -> dict[str, Any]:
    """A SoftHSM token of the test process's own: settings of the PKCS#11 back end. The test is skipped where it is not
    installed. One token for all: the module is loaded once a process and sees no token that is made later.
    """
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: the extra `pkcs11`")
    tool = shutil.which("softhsm2-util")
    if tool is None or not Path(SOFTHSM).exists():
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    home = Path(tempfile.mkdtemp(prefix="behaviorguard-softhsm-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "tokens").mkdir()
    configuration = home / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    command = [tool, "--init-token", "--free", "--label", "behaviorguard", "--so-pin", "12345678", "--pin", PIN]
    subprocess.run(command, check=True, capture_output=True)
    pin = home / "pin"
    pin.write_text(PIN + "\n")
    return {"hsm_backend": "pkcs11", "hsm_pkcs11_library": Path(SOFTHSM), "hsm_pin_file": pin}


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> None:
    """Wait until something holds that only asking can tell."""
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)


def new_id() -> str:
    """A fresh UUID."""
    return str(uuid.uuid4())


def sealed_for(
    made: GeneratedKey, algorithm: Algorithm, plaintext: bytes, organization_id: str = ORGANIZATION
) -> SealedItem:
    """Something sealed for a key of the HSM."""
    public = provider_named("cryptography").kem_public_key(algorithm, made.public_key)
    box = seal(public, INFO, b"bound", plaintext)
    return SealedItem(made.key_handle, organization_id, box.kem_ciphertext, INFO, box.nonce, box.ciphertext, b"bound")


class HsmProcess:
    """The HSM as a process of its own, which tests kill."""

    def __init__(self, rig: HsmRig, port: int, **environment: str) -> None:
        self.rig = rig
        self.target = f"127.0.0.1:{port}"
        self._environment = {
            **os.environ,
            **pki.issue(rig.pki, "hsm").environment(),
            "BEHAVIORGUARD_PORT": str(port),
            "BEHAVIORGUARD_HSM_MODULES": ",".join(str(folder) for folder in rig.modules),
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it is not ready yet."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "servers.hsm"], env=self._environment, stdout=subprocess.DEVNULL
        )

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End it with a signal; returns its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    @asynccontextmanager
    async def calls(self) -> AsyncIterator[tuple[HsmOperator, HsmClient]]:
        """The operator and the quantum service, once it is unsealed."""
        async with AsyncExitStack() as stack:
            identity = pki.issue(self.rig.pki, "operator")
            operator = await stack.enter_async_context(hsm_operator(self.target, identity))
            await ensure_unsealed(operator, self.rig.folder / "share", within_seconds=20)
            channel = hsm_channel(mesh_settings(self.rig.pki, "quantum"), self.target)
            stack.push_async_callback(channel.close)
            client = HsmClient(channel, provider_named("cryptography"), seconds=5.0)
            stack.push_async_callback(client.close)
            yield operator, client


def mesh_settings(folder: Path, caller: str) -> MeshSettings:
    """Settings with which a workload opens channels."""
    identity = pki.issue(folder, caller)
    return MeshSettings(
        service_name=caller,
        tls_ca=identity.ca,
        tls_cert=identity.cert,
        tls_key=identity.key,
        max_message_bytes=8 * 1024 * 1024,
    )
