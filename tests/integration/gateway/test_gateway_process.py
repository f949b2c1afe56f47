"""The gateway as a process: how it starts, says what is wrong, and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import httpx

from infra import pki as authority
from infra.stack.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path


async def run(environment: dict[str, str]) -> asyncio.subprocess.Process:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("BEHAVIORGUARD_")}
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "servers.gateway")
    return await asyncio.create_subprocess_exec(*command, env=inherited | environment, stdout=pipe, stderr=pipe)


def environment(pki: Path, redis_url: str, port: int) -> dict[str, str]:
    return {
        **authority.identity(pki, "gateway").environment(),
        "BEHAVIORGUARD_PORT": str(port),
        "BEHAVIORGUARD_REDIS_URL": redis_url,
        "BEHAVIORGUARD_THREAT_TARGET": "127.0.0.1:1",
    }


async def answers(url: str) -> None:
    """Waits until the process answers."""
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        while True:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


async def test_it_serves_until_it_is_told_to_stop(pki: Path, redis_url: str) -> None:
    port = free_port()
    process = await run(environment(pki, redis_url, port))
    try:
        await answers(f"http://127.0.0.1:{port}/healthz/ready")
        process.send_signal(signal.SIGTERM)
        output, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors
    assert b'"message":"listening"' in output
    assert errors == b""


async def test_missing_settings_are_named(pki: Path, redis_url: str) -> None:
    incomplete = environment(pki, redis_url, 0)
    del incomplete["BEHAVIORGUARD_TLS_CERT"]
    process = await run(incomplete)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert errors.startswith(b"BEHAVIORGUARD_TLS_CERT: ")


async def test_a_missing_operator_token_is_said_to_be(pki: Path, redis_url: str, tmp_path: Path) -> None:
    wrong = environment(pki, redis_url, 0) | {"BEHAVIORGUARD_OPERATOR_TOKEN_FILE": str(tmp_path / "none")}
    process = await run(wrong)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"operator's token" in errors
