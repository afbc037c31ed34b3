"""``WS /v1/live``: live audio in, events of notes out.

Contract: the protocol is `mt3_server.live_audio.live_protocol`'s.  Every message that is sent has a
``seq``, from 0 without gaps, so a client knows whether it has all of them.  Audio that comes faster
than it is played is read as fast as that and no faster, so that a flood takes nothing from others;
audio that the machine cannot keep up with is left out, and ``overrun`` says how much.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from mt3_server.api.event_lines import event_object
from mt3_server.live_audio.live_decoding import live_decoder
from mt3_server.live_audio.live_inbox import LiveInbox
from mt3_server.live_audio.live_protocol import LiveStart, ProtocolError, is_end
from mt3_server.protection.refusals import Refusal, refusal_of

if TYPE_CHECKING:
    from mt3_runtime.engine import LiveInput
    from mt3_runtime.notes.note_events import NoteEvent
    from mt3_server.api.request_work import Caller
    from mt3_server.live_audio.live_decoding import LiveDecoder
    from mt3_server.service import Service

START_SECONDS = 10.0
"""Within which the first message has to come."""

AHEAD_SECONDS, PACE = 10.0, 1.5
"""A client may be so many seconds ahead of what is played, and go on so many times as fast."""

WAIT_SECONDS = 5.0
"""For room in the engine's buffer, before audio is left out."""

MOST_OVERRUNS = 50
"""Messages that may be left out before the input is ended."""

NORMAL, POLICY, RESTART = 1000, 1008, 1013
"""Close codes: done, refused, try again later."""


async def live(socket: WebSocket) -> None:
    """Serves one live input."""
    service = cast("Service", socket.app.state.service)
    caller = cast("Caller", socket.scope["mt3.caller"])
    await socket.accept()
    session = _Session(socket, service, caller)
    code = NORMAL
    try:
        await session.run()
    except WebSocketDisconnect:
        service.metrics.cancelled.labels("client").inc()
    except TimeoutError:
        code = POLICY
        await session.fail("idle", "Nothing came for too long.")
    except ProtocolError as error:
        code = POLICY
        await session.fail("protocol", str(error))
    except Exception as error:
        refusal = refusal_of(error)
        if refusal.status == 500:
            raise
        caller.facts["refused"] = refusal.why
        service.metrics.rejected.labels(refusal.why).inc()
        code = RESTART if refusal.status in (429, 503) else POLICY
        await session.fail(refusal.why, refusal.message)
    finally:
        caller.facts["audio_seconds"] = round(session.seconds, 3)
        session.close()
    if socket.application_state is WebSocketState.CONNECTED:
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(code)


class _Session:
    """One live input.

    Attributes:
        seconds: Of audio that came.
    """

    def __init__(self, socket: WebSocket, service: Service, caller: Caller) -> None:
        self._socket, self._service, self._caller = socket, service, caller
        self._input: LiveInput | None = None
        self._decoder: LiveDecoder | None = None
        self._inbox = LiveInbox(socket)
        self._client = ""
        self._seq = 0
        self._events: asyncio.Queue[NoteEvent | BaseException | None] = asyncio.Queue()
        self.seconds, self._overruns = 0.0, 0
        self._arrived: list[tuple[float, float]] = []  # seconds of audio, and when they were there

    async def run(self) -> None:
        """From the first message to the last."""
        async with asyncio.timeout(START_SECONDS):
            start = LiveStart.of(await self._inbox.next())
        self._client = self._account(start)
        service, keeper = self._service, self._service.keeper(start.model)
        service.check_ready(start.model)
        service.begin_live(self._client)
        try:
            self._input = keeper.engine.open_live(start.rate, client=self._client, **start.options)
            threading.Thread(
                target=_collect,
                args=(self._input, asyncio.get_running_loop(), self._events),
                name="mt3 live",
                daemon=True,
            ).start()
            self._decoder = await live_decoder(start, service.settings)
            await self._send({
                "type": "ready",
                "request_id": self._caller.request_id,
                "model": keeper.name,
                "segment_seconds": keeper.model.info.segments.samples / keeper.model.sample_rate,
            })  # fmt: skip
            await self._transcribe(start, self._input, self._decoder)
        finally:
            service.end_live(self._client)

    async def fail(self, kind: str, message: str) -> None:
        """Says why the input ends."""
        message = message[:1].upper() + message[1:]
        with suppress(RuntimeError, WebSocketDisconnect):
            await self._send({"type": "error", "error": kind, "message": message})

    def close(self) -> None:
        """Ends the input, whatever is left of it."""
        self._inbox.close()
        if self._decoder is not None:
            self._decoder.close()
        if self._input is not None:
            self._input.cancel()

    def _account(self, start: LiveStart) -> str:
        """The client; refuses one that shows no token, neither in a header nor first of all."""
        access, client = self._service.access, self._caller.client
        if client is None and start.token is not None:
            client = self._caller.client = access.of_token(start.token)
        return access.check_token(client, self._socket.url.path)

    async def _transcribe(self, start: LiveStart, live: LiveInput, decoder: LiveDecoder) -> None:
        """Takes audio and sends events, each until its end, or until the client leaves."""
        telling = asyncio.create_task(self._tell())
        tasks = {
            telling,
            asyncio.create_task(self._feed(start, live, decoder)),
            asyncio.create_task(self._inbox.left()),
        }
        try:
            waiting = tasks
            while telling in waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._service.metrics.audio_seconds.labels("live").inc(self.seconds)
        await self._send({"type": "done", "seconds": round(self.seconds, 6)})

    async def _feed(self, start: LiveStart, live: LiveInput, decoder: LiveDecoder) -> None:
        begun = time.monotonic()
        while True:
            async with asyncio.timeout(self._service.settings.patience):
                message = await self._inbox.next()
            if is_end(message):
                live.end()
                return
            async for samples in decoder.blocks(message.get("bytes") or b""):
                await self._take(samples, len(samples) / start.rate, live, begun)

    async def _take(self, samples: Any, seconds: float, live: LiveInput, begun: float) -> None:
        """Hands a block to the engine, no faster than it is played."""
        most = self._service.settings.live_seconds
        self.seconds += seconds
        if self.seconds > most:
            raise Refusal(413, "too_large", f"A live input has at most {most:g} s.")
        early = (self.seconds - AHEAD_SECONDS) / PACE - (time.monotonic() - begun)
        if early > 0.0:
            await self._inbox.pause(early)
        self._arrived.append((self.seconds, time.monotonic()))
        if not len(samples) or await self._taken(live, samples):
            return
        self._overruns += 1
        if self._overruns > MOST_OVERRUNS:
            raise Refusal(
                503, "overrun", "The machine cannot keep up; most of the audio is lost.",
                retry_after=5,
            )  # fmt: skip
        await self._send({
            "type": "overrun", "time": round(self.seconds - seconds, 6),
            "seconds": round(seconds, 6),
        })  # fmt: skip

    async def _taken(self, live: LiveInput, samples: Any) -> bool:
        """Whether the engine has taken a block within a while."""
        until = time.monotonic() + WAIT_SECONDS
        while not live.feed(samples):
            if time.monotonic() > until:
                return False
            await self._inbox.pause(0.05)
        return True

    async def _tell(self) -> None:
        while (item := await self._events.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._observe(item.time)
            await self._send(event_object(item))

    def _observe(self, heard: float) -> None:
        """Measures how long ago the audio came that an event is about."""
        while len(self._arrived) > 1 and self._arrived[0][0] < heard:
            del self._arrived[0]
        if self._arrived:
            lag = time.monotonic() - self._arrived[0][1]
            self._service.metrics.live_lag_seconds.observe(lag)

    async def _send(self, item: dict[str, Any]) -> None:
        number, self._seq = self._seq, self._seq + 1
        text = json.dumps({**item, "seq": number}, allow_nan=False)
        async with asyncio.timeout(self._service.settings.patience):
            await self._socket.send_text(text)


def _collect(
    live: LiveInput,
    loop: asyncio.AbstractEventLoop,
    events: asyncio.Queue[NoteEvent | BaseException | None],
) -> None:
    """Brings the events of a live input to the event loop, on a thread of its own."""
    end: BaseException | None = None
    try:
        for event in live.events():
            loop.call_soon_threadsafe(events.put_nowait, event)
    except BaseException as error:  # noqa: BLE001  raised where the events are sent
        end = error
    with suppress(RuntimeError):  # the loop is closed: nobody listens
        loop.call_soon_threadsafe(events.put_nowait, end)
