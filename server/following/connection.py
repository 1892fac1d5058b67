"""One websocket of one writer to a server, which sends one batch at a time and waits for its acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from client_sdk.protocol import (
    MAX_FRAME_BYTES,
    Ack,
    Alert,
    AlertNotice,
    Batch,
    Error,
    Finish,
    Hello,
    ServerMessage,
    Welcome,
    decode_server_message,
    encode,
)
from server.errors import LinkError
from server.following.address import Address

OPEN_TIMEOUT = 10.0  # seconds
ANSWER_TIMEOUT = 60.0  # seconds for the answer to a hello or a batch
CLOSE_TIMEOUT = 2.0  # seconds
MAX_ANSWERS = 64  # answers that wait to be read; the server sends one for each frame
UNAUTHENTICATED = (
    "the server does not accept the token; set SPIKEWATCH_TOKEN. `spikewatch token create` creates one; on the "
    "server's own machine the one that `spikewatch up` stores is found by itself"
)

_quiet = logging.getLogger("server.following.websockets")
"""Logger for `websockets`, whose errors are reported by the follower."""
_quiet.setLevel(logging.CRITICAL)


class WriterConnection:
    """An open connection whose writer was welcomed. Used from one event loop."""

    def __init__(self, socket: ClientConnection, on_alert: Callable[[Alert], None]) -> None:
        self._socket = socket
        self._on_alert = on_alert
        self._answers: asyncio.Queue[ServerMessage | LinkError] = asyncio.Queue(MAX_ANSWERS)
        self._receiver = asyncio.create_task(self._receive())
        self.last_seq = 0
        """Last sequence that the server has committed."""

    @classmethod
    async def open(cls, address: Address, hello: Hello, on_alert: Callable[[Alert], None]) -> WriterConnection:
        """Connect, send the hello and wait for the welcome. Raises `LinkError`."""
        token = address.find_token()
        try:
            socket = await connect(
                address.socket_url,
                additional_headers=None if token is None else {"Authorization": f"Bearer {token}"},
                open_timeout=OPEN_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                max_size=MAX_FRAME_BYTES,
                proxy=None if address.is_local else True,  # True: the proxy of the environment or the system
                compression=None,
                logger=_quiet,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise LinkError("unauthenticated", UNAUTHENTICATED, retryable=False) from error
            raise LinkError(
                "unreachable", f"{address.url} does not answer like a Spikewatch server: {status}"
            ) from error
        except (OSError, TimeoutError, InvalidURI, InvalidHandshake, EOFError) as error:
            reason = str(error) or type(error).__name__
            raise LinkError("unreachable", f"{address.url} cannot be reached ({reason})") from error
        connection = cls(socket, on_alert)
        try:
            await connection._send(hello)
            connection.last_seq = await connection._answer(Welcome)
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed the connection."""
        return not self._receiver.done()

    async def commit(self, batch: Batch) -> None:
        """Send a batch and return when the server has committed it. Raises `LinkError`."""
        await self._send(batch)
        last = batch.first_seq + len(batch.records) - 1
        while self.last_seq < last:
            self.last_seq = await self._answer(Ack)

    async def finish(self, finish: Finish) -> None:
        """Report the end of the training. Raises `LinkError`."""
        await self._send(finish)
        await self._answer(Ack)

    async def close(self) -> None:
        """Close the connection, within `CLOSE_TIMEOUT` seconds."""
        with contextlib.suppress(ConnectionClosed, OSError):
            await self._socket.close()
        self._receiver.cancel()
        await asyncio.gather(self._receiver, return_exceptions=True)

    async def _send(self, message: Hello | Batch | Finish) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._socket.send(encode(message))
        except ConnectionClosed as error:
            raise self._reason(error) from error
        except TimeoutError as error:
            raise LinkError("unreachable", "the server does not read what is sent") from error

    async def _answer(self, kind: type[Welcome] | type[Ack]) -> int:
        """Return the committed sequence in the next answer. Raises `LinkError`."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while True:
                    answer = await self._answers.get()
                    if isinstance(answer, LinkError):
                        raise answer
                    if isinstance(answer, Error):
                        raise LinkError(answer.code, answer.message, retryable=answer.retryable)
                    if isinstance(answer, Welcome) and kind is Welcome:
                        return answer.last_seq
                    if isinstance(answer, Ack) and kind is Ack:
                        return answer.seq
        except TimeoutError as error:
            raise LinkError("unreachable", "the server does not answer") from error

    async def _receive(self) -> None:
        try:
            async for frame in self._socket:
                if isinstance(frame, str):
                    continue
                try:
                    message = decode_server_message(frame)
                except msgspec.DecodeError:
                    continue  # a newer server may send messages that are unknown here
                if isinstance(message, AlertNotice):
                    self._on_alert(message.alert)
                else:
                    await self._answers.put(message)
            await self._answers.put(LinkError("closed", "the server closed the connection"))
        except ConnectionClosed as error:
            await self._answers.put(self._reason(error))

    def _reason(self, error: ConnectionClosed) -> LinkError:
        """Return the error that the server sent before it closed, or that it closed."""
        while not self._answers.empty():
            answer = self._answers.get_nowait()
            if isinstance(answer, Error):
                return LinkError(answer.code, answer.message, retryable=answer.retryable)
        return LinkError("closed", f"the connection was closed ({error})")
