"""The public `Model`: transcribes recordings and streams with a bundle loaded on a device.

    audio -> segments -> features -> tokens -> notes -> MIDI

`Model.transcribe_notes` runs it all; `Model.preprocess`, `Model.forward` and `Model.decode` are its
three thirds under the names mt3-infer's users know; `Model.stream` yields notes while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast, overload

import numpy as np

from mt3_runtime.arguments.argument_checks import as_callback, as_flag
from mt3_runtime.audio.sources import AudioSource
from mt3_runtime.bundles.bundle import Bundle, Manifest
from mt3_runtime.decoding.batching import Loop, loop_of
from mt3_runtime.decoding.search import search_for
from mt3_runtime.decoding.strands import Priority
from mt3_runtime.decoding.types import Decoded
from mt3_runtime.decoding.types import Sequence as TokenSequence
from mt3_runtime.engine import Engine
from mt3_runtime.errors import OptionError
from mt3_runtime.extensions.auto_lineup import is_auto, transcribe_auto
from mt3_runtime.leakage.leakage_report import AutoFilter, check_auto_filter
from mt3_runtime.notes.instruments import Instruments
from mt3_runtime.notes.note import Note
from mt3_runtime.reading.local_reading import LocalReading
from mt3_runtime.reading.reader_pool import pool_of
from mt3_runtime.reading.reading_plan import extractor
from mt3_runtime.recording import Recording, feature_jobs, notes_of, transcriptions
from mt3_runtime.request import LiveOptions, Options, Request, check_live, check_many, searches_of
from mt3_runtime.transcription import Progress, Transcription, token_digest

if TYPE_CHECKING:
    import mido
    import numpy.typing as npt

    from mt3_runtime.backends.base import Backend, FloatArray
    from mt3_runtime.decoding.search import SearchName
    from mt3_runtime.notes.note_events import NoteEvent
    from mt3_runtime.reading.reader_limits import ReaderLimits

__all__ = ["Model", "ProgressCallback", "token_digest"]

ProgressCallback = Callable[[Progress], None]


class Model:
    """A bundle on a device, ready to transcribe.  Threads share it, processes load it anew.

    Attributes:
        path: Where the bundle is.
        info: What the bundle says about itself.
        auto_filter: Default of the argument of the same name.
        decoding: Default of the argument of the same name.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend | None,
        *,
        auto_filter: AutoFilter = True,
        decoding: SearchName = "greedy",
        again: Callable[[], Model] | None = None,
    ) -> None:
        """Joins the two; without a backend everything but decoding works.

        ``again`` loads the same model once more: what pickling and copying need.
        """
        search_for(decoding)
        check_auto_filter(auto_filter)
        self.path = bundle.path
        self.info: Manifest = bundle.manifest
        self.auto_filter = auto_filter
        self.decoding = decoding
        self._device = backend.description if backend else "none"
        self._again = again
        self._backend = backend
        self._loop = None if backend is None else loop_of(self.info, backend)
        extractor(self.info.features)  # made before the first call, and kept
        self._searches = searches_of(self.info)

    @property
    def device(self) -> str:
        """One line: what runs where."""
        return self._device

    @property
    def sample_rate(self) -> int:
        """The rate audio is resampled to, in Hz."""
        return self.info.segments.sample_rate

    def transcribe(
        self, audio: AudioSource, sr: float | None = None, **options: Unpack[Options]
    ) -> mido.MidiFile:
        """Transcribes a recording to MIDI; arguments and errors as in `transcribe_notes`."""
        return self.transcribe_notes(audio, sr, **options).to_midi()

    def transcribe_notes(
        self,
        audio: AudioSource,
        sr: float | None = None,
        *,
        progress: ProgressCallback | None = None,
        **options: Unpack[Options],
    ) -> Transcription:
        """Transcribes a recording.

        Args:
            audio: Path, binary file object, or samples; see `mt3_runtime.audio.sources.open_audio`.
            sr: Sample rate of an array in Hz; the model's own if None.
            progress: Called after every segment, on this thread.
            options: What else is asked for, see `mt3_runtime.request.Options`.

        Raises:
            AudioError: The audio cannot be read; see `mt3_runtime.audio.sources.open_audio`.
            OptionError: An argument is out of range, or an instrument is not known, or the model
                has none of those asked for.
        """
        as_callback("progress", progress)
        if is_auto(options.get("instruments")):
            once, rate = self.transcribe_notes, self.sample_rate
            return transcribe_auto(once, audio, sr, rate=rate, progress=progress, **options)
        request = self._request(**options)
        recording = Recording.of(request, audio, sr)
        run = transcriptions(
            self._running(),
            [recording],
            request,
            priority=Priority.INTERACTIVE,
            progress=None if progress is None else lambda _, now: progress(now),
            raising=True,
        )
        with closing(run):
            return cast("Transcription", next(run))

    @overload
    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        sr: float | None = None,
        return_exceptions: Literal[False] = False,
        progress: Callable[[int, Progress], None] | None = None,
        readers: int = 0,
        limits: ReaderLimits | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Transcription]: ...

    @overload
    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        sr: float | None = None,
        return_exceptions: Literal[True],
        progress: Callable[[int, Progress], None] | None = None,
        readers: int = 0,
        limits: ReaderLimits | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Transcription | Exception]: ...

    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        sr: float | None = None,
        return_exceptions: bool = False,
        progress: Callable[[int, Progress], None] | None = None,
        readers: int = 0,
        limits: ReaderLimits | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Transcription | Exception]:
        """Transcribes many recordings, all segments of all of them through one continuous batch.

        That is faster where recordings are short, or the model has memory (a segment then waits for
        the one before it, but not for other recordings).  Results are the same.

        Args:
            sources: The recordings.  They are read on a thread of its own, as they are needed; of
                their audio no more is held than a few segments each.
            sr: As in `transcribe_notes`, of all arrays.
            return_exceptions: If reading a recording raises, yield the exception in place of its
                result and go on.  Without, it is raised in that place, which ends the iteration.
            progress: Called after every segment, on this thread, with the number of the recording.
            readers: How many processes read files; with 0, this one does.
            limits: Under which they do, see `mt3_runtime.reading.ReaderLimits`.
            options: As in `transcribe_notes`.

        Yields:
            One result for each of the sources, in their order.

        Raises:
            AudioError: As in `transcribe_notes`, unless ``return_exceptions``.
            OptionError: As in `transcribe_notes`, or ``sources`` is a single recording.
        """
        check_many(sources)
        as_callback("progress", progress)
        return_exceptions = as_flag("return_exceptions", return_exceptions)
        request, pool = self._request(**options), pool_of(readers, limits)
        made = (Recording.of(request, source, sr, pool) for source in sources)
        recordings = list(made) if isinstance(sources, Sized) and len(sources) == 1 else made
        return transcriptions(
            self._running(),
            recordings,
            request,
            priority=Priority.BATCH,
            progress=progress,
            raising=not return_exceptions,
            pool=pool,
        )

    def stream(
        self,
        audio: AudioSource | Iterable[npt.ArrayLike],
        sr: float | None = None,
        *,
        live: bool | None = None,
        **options: Unpack[LiveOptions],
    ) -> Iterator[Note]:
        """Yields notes as soon as the segment in which they end is decoded.

        The order is that of their segments; within one, that of their offsets.  A note is never
        changed after it was yielded.  Latency is at least one segment (2.048 s for MT3).

        Args:
            audio: As in `transcribe_notes`, or an iterator of sample blocks [n] or [n, channels]
                (a microphone, a socket), which is read on a thread of its own.
            sr: Sample rate of arrays or blocks in Hz.
            live: Whether ``audio`` is an iterable of blocks; iterators always are.
            options: As in `transcribe_notes`, but with ``auto_filter`` notes are judged by the ten
                seconds before the end of their segment, and not by what follows.
        """
        check_live(options)
        recording = Recording.streamed(self._request(**options), audio, sr, live)
        return recording.notes(partial(recording.begin, self._running()))

    def stream_events(
        self,
        audio: AudioSource | Iterable[npt.ArrayLike],
        sr: float | None = None,
        *,
        live: bool | None = None,
        **options: Unpack[LiveOptions],
    ) -> Iterator[NoteEvent]:
        """Yields note-on events when notes begin, and note-off events when they end.

        Arguments and errors as in `stream`, whose notes are those of the note-off events; see
        `mt3_runtime.notes.note_events`.  Every note-on has one note-off, also at the end.
        """
        check_live(options)
        recording = Recording.streamed(self._request(**options), audio, sr, live)
        return recording.events(partial(recording.begin, self._running()))

    def engine(
        self,
        *,
        max_recordings: int = 256,
        max_seconds: float = 36_000.0,
        max_live: int = 8,
        readers: int = 0,
        limits: ReaderLimits | None = None,
    ) -> Engine:
        """Opens an engine, to which recordings and live inputs are submitted while it runs.

        It shares the slots with all other calls of this model; close it, or use it in a ``with``.

        Args:
            max_recordings: Recordings that may be under way or wait.
            max_seconds: Of their audio; an unknown length counts as a minute.
            max_live: Live inputs that may be open.
            readers: As in `transcribe_many`.
            limits: As there.
        """
        most = {"max_recordings": max_recordings, "max_live": max_live}
        pool = pool_of(readers, limits)
        return Engine(self._running(), self._request, pool, max_seconds=max_seconds, **most)

    def preprocess(self, audio: AudioSource, sr: float | None = None) -> FloatArray:
        """Turns audio into the network's input.

        Returns:
            float32 [segments, frames, bins].
        """
        plan = self._request(auto_filter=False).plan
        with LocalReading(audio, plan, sr=sr) as reading:
            return np.stack([part.data for part in reading])

    def forward(
        self,
        features: FloatArray,
        *,
        decoding: SearchName | None = None,
        instruments: Instruments | None = None,
        exclude: Instruments | None = None,
        grammar: bool = False,
    ) -> list[TokenSequence]:
        """Runs encoder and decoder.

        Args:
            features: [segments, frames, bins] from `preprocess`: the consecutive segments of one
                recording.
            decoding: As in `transcribe_notes`.
            instruments: As in `transcribe_notes`.
            exclude: As in `transcribe_notes`.
            grammar: As in `transcribe_notes`.

        Returns:
            The sequences of all channels of the first segment, then those of the second, and so on.

        Raises:
            OptionError: The features have another shape, or as in `transcribe_notes`.
        """
        request = self._request(
            decoding=decoding, instruments=instruments, exclude=exclude, grammar=grammar
        )
        with self._running().open() as run:
            run.add(feature_jobs(features, self.info), request.search)
            run.end()
            decoded = [item for item in run.results() if isinstance(item, Decoded)]
        return [sequence for item in decoded for sequence in item.sequences]

    def decode(
        self, tokens: Sequence[TokenSequence], *, upstream_quirks: bool = False
    ) -> mido.MidiFile:
        """Turns the tokens of consecutive segments, from `forward`, into MIDI."""
        from mt3_runtime.files.midi import to_midi  # noqa: PLC0415  keeps mido out of the import

        return to_midi(self.assemble(tokens, upstream_quirks=upstream_quirks))

    def assemble(
        self, tokens: Sequence[TokenSequence], *, upstream_quirks: bool = False
    ) -> tuple[Note, ...]:
        """Turns the tokens of consecutive segments, in the order of `forward`, into notes."""
        return notes_of(tokens, self._request(upstream_quirks=upstream_quirks))

    def warmup(self, *, live: bool = False) -> None:
        """Prepares the device and runs silence, so that real segments find everything in place.

        Args:
            live: Warm up what live input and recordings of one segment use, instead of what
                longer recordings use.
        """
        if self._backend is not None:
            self._backend.warmup()
        segments, features = 1 if as_flag("live", live) else 2, self.info.features
        self.forward(np.zeros((segments, features.frames, features.bins), np.float32))

    def close(self) -> None:
        """Frees the graphs; the model cannot be used afterwards, and what it still does ends."""
        loop, backend, self._loop, self._backend = self._loop, self._backend, None, None
        if loop is not None and backend is not None:
            loop.close(_closed())
            backend.close()

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()], dict[str, object]]:
        if self._again is None or self._backend is None:
            raise OptionError(
                "This model was closed, or not made by load_model, so it cannot be pickled or "
                "copied. Call load_model where the model is used."
            )
        return self._again, (), {"auto_filter": self.auto_filter, "decoding": self.decoding}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> Loop:
        """The decoding loop."""
        if self._loop is None:
            raise _closed()
        return self._loop

    def _request(
        self,
        *,
        auto_filter: AutoFilter | None = None,
        decoding: SearchName | None = None,
        **others: Any,
    ) -> Request:
        """Checks what a call asks for; errors of `Request.of`."""
        return Request.of(
            self.info,
            self._searches,
            auto_filter=self.auto_filter if auto_filter is None else auto_filter,
            decoding=self.decoding if decoding is None else decoding,
            **others,
        )


def _closed() -> OptionError:
    return OptionError("This model has no device, or was closed; load it again.")
