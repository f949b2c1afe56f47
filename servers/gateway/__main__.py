"""`python -m servers.gateway`: runs the gateway with settings from the environment."""

from __future__ import annotations

import logging
import sys

import uvloop
from pydantic import ValidationError

from servers.gateway.contract import ContractError
from servers.gateway.server import GatewayServer
from servers.gateway.settings import GatewaySettings
from servers.mesh.logs import start_logging

_log = logging.getLogger(__name__)


def main() -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status: 0 stopped, 1 failed, 2 settings to be corrected."""
    try:
        settings = GatewaySettings()  # type: ignore[call-arg]  # the missing fields come from the environment
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = "BEHAVIORGUARD_" + "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"{name}: {problem['msg']}\n")
        return 2
    logs = start_logging(settings.service_name, settings.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its INFO lines name clients' addresses
    try:
        server = GatewayServer(settings)
        _log.info("listening", extra={"host": settings.host, "port": server.port})
        return uvloop.run(server.serve_until_signal())
    except (ContractError, ValueError, OSError) as error:
        sys.stderr.write(f"the gateway cannot start: {error}\n")
        return 2
    finally:
        logs.close()


if __name__ == "__main__":
    sys.exit(main())
