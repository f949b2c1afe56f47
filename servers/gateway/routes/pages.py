"""The built web pages, and the OpenAPI document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from servers.gateway.routes.http import send_json
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

_HASHED: Final = re.compile(r"^assets/.*[-.][A-Za-z0-9_-]{8,}\.[a-z0-9]+$")
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_ASK_AGAIN: Final = "no-cache"


class Pages(StaticFiles):
    """Files of the built pages. What carries a hash in its name never changes; the rest is asked for again."""

    def __init__(self, root: Path) -> None:
        super().__init__(directory=root, html=True, check_dir=False)
        self._built = root / "index.html"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one file; there are no sockets here."""
        if scope["type"] != "http":
            raise HTTPException(404)
        if not self._built.is_file():
            reason = ErrorReason.ERROR_REASON_NOT_FOUND
            raise MeshError(reason, f"The pages are not built: {self._built.name} is missing; run `make web`.")
        await super().__call__(scope, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See `StaticFiles`."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = _FOR_EVER if _HASHED.match(path) else _ASK_AGAIN
        return response

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """See `StaticFiles`; names that start with a dot are never served."""
        if any(part.startswith(".") and part != "." for part in path.split("/")):
            return "", None
        return super().lookup_path(path)


class OpenApiEndpoint:
    """`GET /openapi.json`: the whole contract, as generated."""

    def __init__(self, path: Path) -> None:
        self._document = path.read_bytes() if path.is_file() else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        del scope, receive
        if self._document is None:
            raise MeshError(
                ErrorReason.ERROR_REASON_NOT_FOUND, "The OpenAPI document is not there: run `make generate`."
            )
        await send_json(send, self._document)
