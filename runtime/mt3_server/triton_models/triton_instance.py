"""An instance of a Triton model: one process, one loaded bundle, one engine for all its requests.

Contract: a request is an audio file and options, its response notes and a summary.  ``mt3`` answers
each request once, over HTTP or gRPC; ``mt3_stream`` is decoupled: it takes requests whenever they
come and answers when they are done, or with every event of a note.  A request that fails has an
error with our message, alone; one whose client has gone is cancelled, and its slots are free.

Uploads are read by a process of their own, under the limits for files of strangers.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_server.triton_models.tensors import as_tensor, check_environment, read_bytes

if TYPE_CHECKING:
    from mt3_runtime.engine import Engine
    from mt3_runtime.events.event_streams import EventStream
    from mt3_runtime.transcription import Handle
    from mt3_server.request_options import RequestOptions

AUDIO, OPTIONS, NOTES, SUMMARY = "AUDIO", "OPTIONS", "NOTES", "SUMMARY"
"""Names of the inputs and outputs; all are uint8 [1, bytes]."""

#: Seconds between two looks at whether clients are still there.
_LOOK = 0.05


class TritonPythonModel:
    """What Triton makes of ``model.py``; the names of the methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Tests the environment, loads the bundle beside ``model.py``, opens the engine.

        Raises:
            TritonEnvironmentError: The environment changes what tensors hold, or lacks something.
            MT3Error: The model or the device cannot be used.
        """
        import triton_python_backend_utils as pb  # noqa: PLC0415  only inside Triton

        check_environment(pb)
        from mt3_runtime.loading import load_model  # noqa: PLC0415  behind the check of NumPy

        self._pb = pb
        config = json.loads(args["model_config"])
        said = {key: value["string_value"] for key, value in config["parameters"].items()}
        path = Path(args["model_repository"]) / args["model_version"] / said["bundle"]
        device = device_of(said["device"], args)
        self._model = load_model(path, device=device, threads=int(said["threads"]) or None)
        check_export(path, self._model.info.export_id, said["export_id"])
        self._model.warmup()
        self._engine = open_engine(self._model, int(said["readers"]))
        decoupled = config["model_transaction_policy"]["decoupled"]
        self._service = Decoupled(pb, self._engine) if decoupled else Single(pb, self._engine)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Takes requests; a decoupled model answers later."""
        return self._service.execute(requests)

    def finalize(self) -> None:
        """Lets what is under way fail, and frees the device."""
        self._service.close()
        self._engine.close()
        self._model.close()


def device_of(name: str, args: dict[str, str]) -> str:
    """The device of an instance: Triton says which GPU it is to use."""
    gpu = args.get("model_instance_kind", "") in ("GPU", "KIND_GPU")
    return f"{name}:{args['model_instance_device_id']}" if gpu and ":" not in name else name


def check_export(path: Path, found: str, expected: str) -> None:
    """Refuses a bundle that was put in the place of the one the repository was written with.

    Raises:
        BundleError: It is another one.
    """
    from mt3_runtime.errors import BundleError  # noqa: PLC0415  behind the check of NumPy

    if found != expected:
        raise BundleError(
            f"{path} is export {found}, and config.pbtxt was written for {expected}. Write the "
            "repository again: mt3 triton MODEL -o OUT"
        )


def open_engine(model: Any, readers: int) -> Engine:
    """The engine of an instance; with readers, uploads have limits."""
    from mt3_runtime.reading.reader_limits import ReaderLimits  # noqa: PLC0415  behind the check of NumPy

    limits = ReaderLimits.untrusted() if readers else None
    return model.engine(readers=readers, limits=limits)  # type: ignore[no-any-return]


def asked(pb: Any, request: Any, *, events: bool) -> tuple[bytes, RequestOptions]:
    """The audio file and the options of a request.

    Raises:
        MT3Error: The options mean nothing, or there is no audio.
        ValueError: A tensor is no row of bytes.
    """
    from mt3_runtime.errors import AudioError  # noqa: PLC0415  behind the check of NumPy
    from mt3_server.request_options import RequestOptions  # noqa: PLC0415

    options = RequestOptions.parse(read_bytes(pb, request, OPTIONS), events=events)
    audio = read_bytes(pb, request, AUDIO)
    if not audio:
        raise AudioError(f"{AUDIO} is empty; expected the bytes of an audio file.")
    return audio, options


def submit(engine: Engine, audio: bytes, options: RequestOptions) -> Handle:
    """Hands a request to the engine; errors of `Engine.submit`."""
    return engine.submit(
        io.BytesIO(audio),
        priority=options.priority,
        client=options.client,
        deadline=options.deadline,
        **options.options,
    )


def response(pb: Any, notes: bytes, told: dict[str, Any]) -> Any:
    """A response of Triton; no notes are an empty line, as Triton takes no empty DLPack tensor."""
    said = json.dumps(told).encode()
    return pb.InferenceResponse(
        [as_tensor(pb, NOTES, notes or b"\n"), as_tensor(pb, SUMMARY, said)]
    )


def failure(pb: Any, error: BaseException, *, cancelled: bool = False) -> Any:
    """A response that is an error with our message."""
    code = pb.TritonError.CANCELLED if cancelled else pb.TritonError.INVALID_ARG
    text = "The request was cancelled." if cancelled else f"{type(error).__name__}: {error}"
    return pb.InferenceResponse(error=pb.TritonError(text, code))


def answer(pb: Any, handle: Handle, options: RequestOptions) -> Any:
    """The response to a request that is done."""
    from mt3_runtime.files.formats import render  # noqa: PLC0415  behind the check of NumPy
    from mt3_server.request_options import summary  # noqa: PLC0415

    if handle.cancelled():
        return failure(pb, RuntimeError(), cancelled=True)
    if (error := handle.exception()) is not None:
        return failure(pb, error)
    result = handle.result()
    return response(pb, render(result, options.format), summary(result))


class Single:
    """Answers requests together, each once: Triton hands over as many as wait.

    Args:
        pb: Triton's module.
        engine: Takes them.
    """

    def __init__(self, pb: Any, engine: Engine) -> None:
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
            last = failure(self._pb, RuntimeError(), cancelled=True) if self._gone else last
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
    """Takes requests whenever they come, and answers each when it is done, or note by note.

    Args:
        pb: Triton's module.
        engine: Takes them.
        streams: How many are answered note by note at a time; more wait.
    """

    def __init__(self, pb: Any, engine: Engine, streams: int = 16) -> None:
        self._pb, self._engine = pb, engine
        self._open: set[Reply] = set()
        self._changed, self._closed = threading.Condition(), False
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="mt3 events")
        self._watcher = threading.Thread(target=self._watch, name="mt3 clients", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        """Hands requests to the engine; returns at once."""
        from mt3_server.request_options import EVENTS  # noqa: PLC0415  behind the check of NumPy

        for request in requests:
            reply = Reply(self._pb, request.get_response_sender())
            try:
                audio, options = asked(self._pb, request, events=True)
                if options.format == EVENTS:
                    stream = self._engine.open_events(
                        io.BytesIO(audio), client=options.client, **options.options
                    )
                    self._see(reply, stream.cancel)
                    self._threads.submit(self._stream, reply, stream)
                else:
                    handle = submit(self._engine, audio, options)
                    self._see(reply, handle.cancel)
                    handle.add_done_callback(partial(self._answer, reply, options))
            except Exception as error:  # noqa: BLE001  it is this request's alone
                self._end(reply, failure(self._pb, error))

    def close(self) -> None:
        """Cancels what is under way."""
        with self._changed:
            self._closed, under_way = True, list(self._open)
            self._changed.notify_all()
        for reply in under_way:
            if reply.cancel is not None:
                reply.cancel()
        self._threads.shutdown()
        self._watcher.join()

    def _see(self, reply: Reply, cancel: Callable[[], object]) -> None:
        """Cancels a request when its client has gone."""
        reply.cancel = cancel
        with self._changed:
            self._open.add(reply)
            self._changed.notify_all()

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

    def _answer(self, reply: Reply, options: RequestOptions, handle: Any) -> None:
        try:
            answered = answer(self._pb, handle, options)
        except Exception as error:  # noqa: BLE001  the client has to be told
            answered = failure(self._pb, error)
        self._end(reply, answered)

    def _stream(self, reply: Reply, stream: EventStream) -> None:
        """Sends the events of a recording as they come."""
        from mt3_server.request_options import event_line  # noqa: PLC0415

        count = 0
        try:
            for event in stream:
                reply.send(response(self._pb, event_line(event), {"event": count}))
                count += 1
            last = response(self._pb, b"", {"events": count, "done": True})
        except Exception as error:  # noqa: BLE001  the client has to be told
            last = failure(self._pb, error)
        finally:
            stream.cancel()
        self._end(reply, last)

    def _end(self, reply: Reply, last: Any) -> None:
        with self._changed:
            self._open.discard(reply)
        reply.end(last)
