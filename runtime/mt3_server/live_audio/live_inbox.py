"""Messages of a client of a live input, taken in ahead of their use.

Contract: `LiveInbox.next` gives one after the other; both it and `LiveInbox.pause` raise
`WebSocketDisconnect` as soon as the client has left, though it had sent more than was used.  Of a
client that sends faster than is read, a bounded part is held, and the rest waits in its connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.websockets import WebSocketDisconnect

from mt3_server.live_audio.live_protocol import MOST_MESSAGE

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

MOST_HELD = 64
"""Messages: a recorder's of a quarter of a second last 16 s.  A client that has sent more, and
leaves, is noticed when these are used up."""

GONE = 1006
"""Close code where the connection ended without one."""


class LiveInbox:
    """See the module docstring.

    Args:
        socket: Whose handshake is done; nobody else receives from it.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._messages: deque[dict[str, Any]] = deque()
        self._bytes = 0
        self._changed = asyncio.Condition()
        self._gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._receive())

    async def next(self) -> dict[str, Any]:
        """The next message.

        Raises:
            WebSocketDisconnect: The client has left.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._messages or self._gone.done())
            if self._gone.done():
                raise WebSocketDisconnect(self._gone.result())
            message = self._messages.popleft()
            self._bytes -= _size(message)
            self._changed.notify_all()
            return message

    async def pause(self, seconds: float) -> None:
        """Waits for a while; raises as `next`."""
        done, _ = await asyncio.wait({self._gone}, timeout=seconds)
        if done:
            raise WebSocketDisconnect(self._gone.result())

    async def left(self) -> NoReturn:
        """Waits until the client leaves; raises then as `next`."""
        raise WebSocketDisconnect(await asyncio.shield(self._gone))

    def close(self) -> None:
        """Takes in no more."""
        self._task.cancel()

    async def _receive(self) -> None:
        code = GONE
        try:
            while True:
                message = dict(await self._socket.receive())
                if message["type"] == "websocket.disconnect":
                    code = message.get("code") or GONE
                    return
                async with self._changed:
                    self._messages.append(message)
                    self._bytes += _size(message)
                    self._changed.notify_all()
                    await self._changed.wait_for(self._has_room)
        finally:
            if not self._gone.done():
                self._gone.set_result(code)
            async with self._changed:
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._messages) < MOST_HELD and self._bytes < MOST_MESSAGE


def _size(message: dict[str, Any]) -> int:
    return len(message.get("bytes") or message.get("text") or "")
