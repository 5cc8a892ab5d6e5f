"""A connection that is made anew when it is lost. Each has one owner, which never shares it.

Every use has a local deadline: no setting of the network notices a server that is merely stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

KEEPALIVE = {
    # A silent cut is noticed within 6 s, but only with both keepalives (idle) and tcp_user_timeout (unacknowledged data).
    "keepalives_idle": "3", "keepalives_interval": "1", "keepalives_count": "3",
    "tcp_user_timeout": "6000", "connect_timeout": "5",
}  # fmt: skip

Setup = Callable[[AsyncConnection[Any]], Awaitable[None]]


class TransientDatabaseError(Exception):
    """Postgres is away, busy, or was in the way: try again after a pause. The statement may or may not have taken effect."""


class Session:
    """One connection in autocommit. Uses queue up: one at a time has it."""

    def __init__(self, url: str, name: str, *, prepare: bool, setup: Setup | None = None) -> None:
        self._url = url
        self._name = name
        self._prepare = prepare
        self._setup = setup
        self._connection: AsyncConnection[Any] | None = None
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def use(self, deadline: float = 10.0) -> AsyncIterator[AsyncConnection[Any]]:
        """The connection, for at most `deadline` seconds. TransientDatabaseError: see there; other errors of Postgres pass."""
        async with self._turn, self._guarded(deadline) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _guarded(self, deadline: float) -> AsyncIterator[AsyncConnection[Any]]:
        try:
            async with asyncio.timeout(deadline):
                yield await self._connected()
        except TimeoutError as error:
            await self.close()
            raise TransientDatabaseError(f"no answer from Postgres within {deadline:g} s") from error
        except (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction) as error:
            await self._after_error(broken=not isinstance(error, (errors.LockNotAvailable, errors.TransactionRollback)))
            raise TransientDatabaseError(_first_line(error)) from error
        except errors.FeatureNotSupported as error:
            await self.close()  # a prepared plan whose columns have changed type: prepare anew
            raise TransientDatabaseError(_first_line(error)) from error
        except psycopg.Error:
            await self._after_error(broken=False)
            raise
        except asyncio.CancelledError:
            await self.close()  # cut in the middle of a statement: its outcome is unknown, so is the connection's state
            raise

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    @property
    def connected(self) -> AsyncConnection[Any] | None:
        """The open connection; None: there is none at the moment."""
        connection = self._connection
        return None if connection is None or connection.closed else connection

    def _parameters(self) -> dict[str, Any]:
        """Of the connection; what the URL says goes before our own."""
        return {**KEEPALIVE, "application_name": f"jobcluster {self._name}", **conninfo_to_dict(self._url)}

    async def _connected(self) -> AsyncConnection[Any]:
        if self.connected is None:
            self._connection = await AsyncConnection.connect(
                make_conninfo("", **self._parameters()),
                autocommit=True,
                prepare_threshold=0 if self._prepare else None,
                client_encoding="utf-8",
            )
            self._connection.prepared_max = None  # as many as there are job types: evicting one would cost more
            if self._setup is not None:
                await self._setup(self._connection)
        assert self._connection is not None
        return self._connection

    async def _after_error(self, *, broken: bool) -> None:
        connection = self.connected
        if connection is None or broken:
            await self.close()
        elif connection.info.transaction_status != pq.TransactionStatus.IDLE:
            try:
                await connection.rollback()
            except psycopg.Error:
                await self.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
