"""A TCP relay in front of a database that fails in the ways that networks do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from types import TracebackType


class DatabaseRelay:
    """Stands between a service and PostgreSQL: `async with DatabaseRelay(dsn) as relay`, then use `relay.dsn`."""

    def __init__(self, dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        self._target = (str(parts["host"]), int(str(parts["port"])))
        self._dsn = dsn
        self._port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.loses_commit = False
        """The answer to the next COMMIT is lost, and the connection with it; the database has it."""
        self.lost = 0
        """Answers to COMMIT that were lost."""

    @property
    def dsn(self) -> str:
        """Where to connect to."""
        return make_conninfo(self._dsn, host="127.0.0.1", port=self._port)

    @property
    def flowing(self) -> bool:
        """False while nothing gets through."""
        return self._flowing.is_set()

    async def __aenter__(self) -> DatabaseRelay:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def mend(self) -> None:
        """Let connections through, at the same port as before."""
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.drop()

    async def drop(self) -> None:
        """End all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang(self) -> None:
        """Let nothing through in either direction, without a word, until `mend`."""
        self._flowing.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(*self._target)
            losing = asyncio.Event()
            ways = [
                asyncio.create_task(self._there(reader, there, losing)),
                asyncio.create_task(self._back(back, writer, losing)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, there):
                if end is not None:
                    end.close()

    async def _there(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            if self.loses_commit and b"COMMIT" in data:
                self.loses_commit = False
                losing.set()
            target.write(data)
            await target.drain()

    async def _back(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            if losing.is_set():
                self.lost += 1
                return
            target.write(data)
            await target.drain()
