"""Answers the requests of a Triton model: each once, or as its recording is decoded.

Contract: a request is an audio file and options, its response notes and a summary.  ``mt3`` answers
each request once, over HTTP or gRPC; ``mt3_stream`` is decoupled: it takes requests whenever they
come and answers when they are done, or segment by segment.  A request that fails has an error with
our message, alone; one whose client has gone is cancelled, and its slots are free.

Uploads are read by a process of their own, under the limits for files of strangers.
"""

from __future__ import annotations

import io
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_runtime.errors import AudioError, BundleError, DeadlineError, EngineError, MT3Error
from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_runtime.reading.reader_limits import ReaderLimits
from mt3_server.request_options import EVENTS, RequestOptions, done_line, event_lines, summary
from mt3_server.triton_models.tensors import as_tensor, read_bytes

if TYPE_CHECKING:
    from mt3_runtime.engine import Engine
    from mt3_runtime.model import Model
    from mt3_runtime.notes.note_events import NoteEvent
    from mt3_runtime.transcription import Handle, Progress, Tell

AUDIO, OPTIONS, NOTES, SUMMARY = "AUDIO", "OPTIONS", "NOTES", "SUMMARY"
"""Names of the inputs and outputs; all are uint8 [1, bytes]."""

#: Seconds between two looks at whether clients are still there.
_LOOK = 0.05

_log = logging.getLogger("mt3_server")


def open_model(path: Path, said: Mapping[str, str], device: str) -> Model:
    """Loads and warms up the bundle of an instance.

    Args:
        path: Of the bundle.
        said: Parameters of ``config.pbtxt``.
        device: As of `load_model`.

    Raises:
        BundleError: It is not the one the repository was written with, or as `load_model`.
    """
    model = load_model(path, device=device, threads=int(said["threads"]) or None)
    if model.info.export_id != said["export_id"]:
        found = model.info.export_id
        model.close()
        raise BundleError(
            f"{path} is export {found}, and config.pbtxt was written for {said['export_id']}. "
            "Write the repository again: mt3 triton MODEL -o OUT"
        )
    model.warmup()
    return model


class KeptEngine:
    """The engine of an instance; another one, if the device of the first has failed.

    Args:
        model: Whose.
        readers: Processes that read uploads, under limits.
    """

    def __init__(self, model: Model, readers: int) -> None:
        self._model, self._readers = model, readers
        self._engine = self._open()

    def get(self) -> Engine:
        """The engine; only the thread of ``execute`` asks."""
        if self._engine.health().error is not None:
            self._engine.close()
            self._engine = self._open()
        return self._engine

    def close(self) -> None:
        """Stops all work."""
        self._engine.close()

    def _open(self) -> Engine:
        limits = ReaderLimits.untrusted() if self._readers else None
        return self._model.engine(readers=self._readers, limits=limits)


def asked(pb: Any, request: Any, *, events: bool) -> tuple[bytes, RequestOptions]:
    """The audio file and the options of a request.

    Raises:
        MT3Error: The options mean nothing, or there is no audio.
        ValueError: A tensor is no row of bytes.
    """
    options = RequestOptions.parse(read_bytes(pb, request, OPTIONS), events=events)
    audio = read_bytes(pb, request, AUDIO)
    if not audio:
        raise AudioError(f"{AUDIO} is empty; expected the bytes of an audio file.")
    return audio, options


def submit(
    kept: KeptEngine, audio: bytes, options: RequestOptions, tell: Tell | None = None
) -> Handle:
    """Hands a request to the engine; errors of `Engine.submit`."""
    return kept.get().submit(
        io.BytesIO(audio),
        priority=options.priority,
        client=options.client,
        deadline=options.deadline,
        events=tell,
        **options.options,
    )


def response(pb: Any, notes: bytes, told: dict[str, Any]) -> Any:
    """A response of Triton; no notes are an empty line, as Triton takes no empty DLPack tensor."""
    said = json.dumps(told).encode()
    return pb.InferenceResponse(
        [as_tensor(pb, NOTES, notes or b"\n"), as_tensor(pb, SUMMARY, said)]
    )


def failure(pb: Any, error: BaseException | None) -> Any:
    """A response that is an error with our message; None stands for a client that has gone."""
    kinds = pb.TritonError
    if error is None:
        return pb.InferenceResponse(error=kinds("The request was cancelled.", kinds.CANCELLED))
    ours = isinstance(error, MT3Error | ValueError)
    busy = isinstance(error, EngineError | DeadlineError)
    code = kinds.UNAVAILABLE if busy else kinds.INVALID_ARG if ours else kinds.INTERNAL
    return pb.InferenceResponse(error=kinds(f"{type(error).__name__}: {error}", code))


def answer(pb: Any, handle: Handle, options: RequestOptions) -> Any:
    """The response to a request that is done."""
    if handle.cancelled():
        return failure(pb, None)
    if (error := handle.exception()) is not None:
        return failure(pb, error)
    result = handle.result()
    last = options.format == EVENTS
    return response(pb, done_line(result) if last else render(result, options.format),
                    summary(result))  # fmt: skip


class Single:
    """Answers requests together, each once: Triton hands over as many as wait.

    Args:
        pb: Triton's module.
        engine: Takes them.
    """

    def __init__(self, pb: Any, engine: KeptEngine) -> None:
        self._pb, self._engine = pb, engine

    def execute(self, requests: list[Any]) -> list[Any]:
        """The responses, in the order of the requests."""
        responses: dict[int, Any] = {}
        under_way: dict[int, tuple[Handle, RequestOptions]] = {}
        for index, request in enumerate(requests):
            try:
                audio, options = asked(self._pb, request, events=False)
                under_way[index] = submit(self._engine, audio, options), options
            except Exception as error:  # noqa: BLE001  it is this request's alone
                responses[index] = failure(self._pb, error)
        while under_way:
            for index, (handle, _) in list(under_way.items()):
                if handle.done():
                    responses[index] = answer(self._pb, *under_way.pop(index))
                elif requests[index].is_cancelled():
                    handle.cancel()
            if under_way:
                time.sleep(_LOOK)
        return [responses[index] for index in range(len(requests))]

    def close(self) -> None:
        """Nothing is open between two calls."""


class Reply:
    """The responses to one request of a decoupled model.

    Triton's senders do not take two calls at once: asked whether the client is there while the last
    response is sent, they wait for ever (2.51).

    Args:
        pb: Triton's module.
        sender: Of the request.
    """

    def __init__(self, pb: Any, sender: Any) -> None:
        self._pb, self._sender = pb, sender
        self._lock, self._ended, self._gone = threading.Lock(), False, False
        self.cancel: Callable[[], object] | None = None

    def send(self, part: Any) -> None:
        """Sends a response; not to a client that has gone."""
        with self._lock:
            if not self._gone:
                self._sender.send(part)

    def end(self, last: Any) -> None:
        """Sends the last response."""
        with self._lock:
            self._ended = True
            last = failure(self._pb, None) if self._gone else last
            self._sender.send(last, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def look(self) -> None:
        """Stops the work if the client has gone."""
        with self._lock:
            if self._ended or self._gone or not self._sender.is_cancelled():
                return
            self._gone = True
        if self.cancel is not None:
            self.cancel()


class Decoupled:
    """Takes requests whenever they come, and answers each when it is done, or segment by segment.

    Args:
        pb: Triton's module.
        engine: Takes them.
    """

    def __init__(self, pb: Any, engine: KeptEngine) -> None:
        self._pb, self._engine = pb, engine
        self._open: set[Reply] = set()
        self._changed, self._closed = threading.Condition(), False
        self._to_send: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"mt3 {name}", daemon=True)
            for name, work in (("clients", self._watch), ("answers", self._send))
        ]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Hands requests to the engine; returns at once."""
        for request in requests:
            reply = Reply(self._pb, request.get_response_sender())
            try:
                audio, options = asked(self._pb, request, events=True)
                tell = partial(self._tell, reply) if options.format == EVENTS else None
                handle = submit(self._engine, audio, options, tell)
            except Exception as error:  # noqa: BLE001  it is this request's alone
                reply.end(failure(self._pb, error))
                continue
            reply.cancel = handle.cancel
            with self._changed:
                self._open.add(reply)
                self._changed.notify_all()
            handle.add_done_callback(partial(self._done, reply, options))

    def close(self) -> None:
        """Cancels what is under way."""
        with self._changed:
            self._closed, under_way = True, list(self._open)
            self._changed.notify_all()
        for reply in under_way:
            if reply.cancel is not None:
                reply.cancel()
        self._to_send.put(None)
        for thread in self._threads:
            thread.join()

    def _tell(self, reply: Reply, events: list[NoteEvent], progress: Progress) -> None:
        """Takes in what the engine's thread tells, which must not wait."""
        self._to_send.put(partial(self._part, reply, events, progress))

    def _done(self, reply: Reply, options: RequestOptions, handle: Any) -> None:
        self._to_send.put(partial(self._answer, reply, options, handle))

    def _part(self, reply: Reply, events: list[NoteEvent], progress: Progress) -> None:
        told = {"seconds_done": progress.seconds_done}
        reply.send(response(self._pb, event_lines(events, progress), told))

    def _answer(self, reply: Reply, options: RequestOptions, handle: Handle) -> None:
        with self._changed:
            self._open.discard(reply)
        reply.end(answer(self._pb, handle, options))

    def _send(self) -> None:
        """Sends what is to be sent, in its order; one that cannot be sent has lost its client."""
        while (call := self._to_send.get()) is not None:
            try:
                call()
            except Exception:  # noqa: BLE001  the others still have clients
                _log.exception("a response was not sent")

    def _watch(self) -> None:
        """Asks Triton, which tells nobody, whether clients are still there."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._open or self._closed)
                if self._closed:
                    return
                under_way = list(self._open)
            for reply in under_way:
                reply.look()
            time.sleep(_LOOK)
