"""A TCP connection that is on record from its first moment to its last, and that can be torn down on purpose."""

import asyncio
import socket
import struct
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from app.simulator.records import Connection, Ended, Records


class LoggedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a record; an application finds it in ``scope["state"]["connection"]``."""

    record: Connection

    def __init__(self, config: Config, state: ServerState, records: Records) -> None:
        super().__init__(config, state, {"connection": self})
        # Here and not by the configuration, which would silence uvicorn's access log in the whole process.
        self.access_log = False
        self._records = records
        self._ended: Ended = "server_closed"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        peer: Any = transport.get_extra_info("peername")
        self.record = self._records.opened(f"{peer[0]}:{peer[1]}" if peer else "unknown")

    def eof_received(self) -> None:
        """The client closed its side: nobody will read on."""
        self._ended = "client_closed"

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; the response in progress hears of it at once."""
        if isinstance(exc, ConnectionError):
            self._ended = "client_reset"
        self._records.closed(self.record, self._ended)
        super().connection_lost(exc)

    @property
    def is_open(self) -> bool:
        """Whether what is written still goes out."""
        return not self.transport.is_closing()

    def hang_up(self) -> None:
        """End the connection as if it had been idle for too long."""
        self.transport.close()

    def reset(self) -> None:
        """End the connection with a TCP reset; what is still in the write buffer is lost."""
        self._ended = "server_reset"
        # Lingering for no time at all is what turns the close into a reset.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
