"""The public `Model`: transcribes recordings and streams with a bundle loaded on a device.

    audio -> segments -> features -> tokens -> notes -> MIDI

`Model.transcribe_notes` runs it all; `Model.preprocess`, `Model.forward` and `Model.decode` are its
three thirds under the names mt3-infer's users know; `Model.stream` yields notes while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack, cast, overload

import numpy as np

from mt3_runtime.audio.sources import AudioSource, is_recording, open_audio, open_blocks
from mt3_runtime.bundles.bundle import Bundle, Manifest
from mt3_runtime.decoding.search import search_for
from mt3_runtime.decoding.types import Job
from mt3_runtime.decoding.types import Sequence as TokenSequence
from mt3_runtime.errors import OptionError
from mt3_runtime.leakage.leakage_report import AutoFilter, check_auto_filter
from mt3_runtime.notes.instruments import Instruments
from mt3_runtime.notes.note import Note
from mt3_runtime.pipeline import Pipeline
from mt3_runtime.recording import assemble, token_digest
from mt3_runtime.request import Options, Request, Wishes
from mt3_runtime.transcription import Progress, Transcription, by_onset

if TYPE_CHECKING:
    import mido
    import numpy.typing as npt

    from mt3_runtime.backends.base import Backend, FloatArray
    from mt3_runtime.decoding.search import SearchName

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
        self._pipeline = Pipeline(bundle.manifest, backend)
        self._device = backend.description if backend else "none"
        self._again = again

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
        auto_filter: AutoFilter | None = None,
        decoding: SearchName | None = None,
        instruments: Instruments | None = None,
        exclude: Instruments | None = None,
        grammar: bool = False,
        min_confidence: float = 0.0,
        smooth: bool = False,
        upstream_quirks: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Transcription:
        """Transcribes a recording.

        Args:
            audio: Path, binary file object, or samples; see `mt3_runtime.audio.sources.open_audio`.
            sr: Sample rate of an array in Hz; the model's own if None.
            auto_filter: Filter of leakage (`leakage_report`): True, False, ``"classic"``.
            decoding: ``greedy``, or ``t5x`` for the search of the published MT3 notebook.
            instruments: What may occur, see `instruments.choose`: names, families, General MIDI
                program numbers, ``drums``.  The model cannot say anything else.
            exclude: What may not.
            grammar: Whether the model may only say what means something (`decoding.grammar`).
            min_confidence: Notes below it are left out, and counted in the result.
            smooth: Whether to repair programs that slip for one segment (`program_smoothing`).
            upstream_quirks: Imitate known defects of the model's original implementation.
            progress: Called after every segment, on this thread.

        Raises:
            AudioError: The audio cannot be read; see `mt3_runtime.audio.sources.open_audio`.
            OptionError: An argument is out of range, or an instrument is not known, or the model
                has none of those asked for.
        """
        request = self._request(
            auto_filter=auto_filter,
            decoding=decoding,
            instruments=instruments,
            exclude=exclude,
            grammar=grammar,
            min_confidence=min_confidence,
            smooth=smooth,
            upstream_quirks=upstream_quirks,
        )
        each = None if progress is None else lambda _, now: progress(now)
        run = self._pipeline.transcribe([audio], sr, request, progress=each)
        with closing(run):
            return _given(next(run))

    @overload
    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        sr: float | None = None,
        return_exceptions: Literal[False] = False,
        progress: Callable[[int, Progress], None] | None = None,
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
        **options: Unpack[Options],
    ) -> Iterator[Transcription | Exception]: ...

    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        sr: float | None = None,
        return_exceptions: bool = False,
        progress: Callable[[int, Progress], None] | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Transcription | Exception]:
        """Transcribes many recordings, all segments of all of them through one continuous batch.

        That is faster than one after another where recordings are short, or the model has memory
        (a segment then has to wait for the one before it, but not for other recordings).  Results
        are the same.

        Args:
            sources: The recordings.  They are read on a thread of its own, as they are needed; of
                their audio no more is held than a few segments each.
            sr: As in `transcribe_notes`, of all arrays.
            return_exceptions: If reading a recording raises, yield the exception in place of its
                result and go on.  Without, it is raised in that place, which ends the iteration.
            progress: Called after every segment, on this thread, with the number of the recording.
            options: As in `transcribe_notes`.

        Yields:
            One result for each of the sources, in their order.

        Raises:
            AudioError: As in `transcribe_notes`, unless ``return_exceptions``.
            OptionError: As in `transcribe_notes`, or ``sources`` is a single recording.
        """
        if is_recording(sources):
            raise OptionError("sources must be several recordings; put a single one into a list.")
        request = self._request(**options)
        run = self._pipeline.transcribe(sources, sr, request, progress=progress)
        return run if return_exceptions else _raising(run)

    def stream(
        self,
        audio: AudioSource | Iterable[npt.ArrayLike],
        sr: float | None = None,
        *,
        auto_filter: AutoFilter | None = None,
        decoding: SearchName | None = None,
        instruments: Instruments | None = None,
        exclude: Instruments | None = None,
        grammar: bool = False,
        min_confidence: float = 0.0,
        live: bool | None = None,
    ) -> Iterator[Note]:
        """Yields notes as soon as the segment in which they end is decoded.

        The order is that of their segments; within one, that of their offsets.  A note is never
        changed after it was yielded.  Latency is at least one segment (2.048 s for MT3).

        Args:
            audio: As in `transcribe_notes`, or an iterator of sample blocks [n] or [n, channels]
                (a microphone, a socket), which is read on a thread of its own.
            sr: Sample rate of arrays or blocks in Hz.
            auto_filter: As in `transcribe_notes`, but notes are judged by the ten seconds before
                the end of their segment, and not by what follows.
            decoding: As in `transcribe_notes`.
            instruments: As in `transcribe_notes`.
            exclude: As in `transcribe_notes`.
            grammar: As in `transcribe_notes`.
            min_confidence: As in `transcribe_notes`.
            live: Whether ``audio`` is an iterable of blocks; iterators always are.
        """
        request = self._request(
            auto_filter=auto_filter,
            decoding=decoding,
            instruments=instruments,
            exclude=exclude,
            grammar=grammar,
            min_confidence=min_confidence,
        )
        if live is None:
            live = isinstance(audio, Iterator) and not hasattr(audio, "read")
        if live:
            blocks = cast("Iterable[npt.ArrayLike]", audio)
            rate = self.sample_rate if sr is None else sr
            opened = open_blocks(blocks, sr=rate, target_rate=self.sample_rate)
        else:
            source = cast("AudioSource", audio)
            opened = open_audio(source, sr=sr, target_rate=self.sample_rate)
        return self._pipeline.stream(opened, request, live=live)

    def preprocess(self, audio: AudioSource, sr: float | None = None) -> FloatArray:
        """Turns audio into the network's input.

        Returns:
            float32 [segments, frames, bins].
        """
        with open_audio(audio, sr=sr, target_rate=self.sample_rate) as stream:
            return np.stack([job.features() for job in self._pipeline.jobs(stream.with_warnings())])

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
        features = np.asarray(features, np.float32)
        expected = (self.info.features.frames, self.info.features.bins)
        if features.ndim != 3 or features.shape[1:] != expected:
            raise OptionError(
                f"features must have shape [segments, {expected[0]}, {expected[1]}], "
                f"got {list(features.shape)}; make them with preprocess()."
            )
        last = len(features) - 1
        jobs = (
            Job(self._pipeline.span(i, last=i == last), partial(np.asarray, row))
            for i, row in enumerate(features)
        )
        with closing(self._pipeline.segments(jobs, request)) as run:
            return [sequence for decoded in run for sequence in decoded.sequences]

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
        for sequence in tokens if isinstance(tokens, Sequence) else [tokens]:
            if not isinstance(sequence, TokenSequence):
                raise OptionError(
                    f"tokens must be what forward() returns, got {type(sequence).__name__}."
                )
        channels = self.info.model.channels
        count, rest = divmod(len(tokens), channels)
        if rest:
            raise OptionError(
                f"This model has {channels} sequences per segment; {len(tokens)} are no whole "
                "number of segments."
            )
        assembler = self._request(upstream_quirks=upstream_quirks).assembler()
        notes: list[Note] = []
        for index in range(count):
            span = self._pipeline.span(index, last=index + 1 == count)
            sequences = tokens[index * channels : (index + 1) * channels]
            notes += assemble(assembler, span, sequences)[0]
        return by_onset(notes + assembler.finish())

    def warmup(self, *, live: bool = False) -> None:
        """Prepares the device and runs silence, so that real segments find everything in place.

        Args:
            live: Warm up what live input and recordings of one segment use, instead of what
                longer recordings use.
        """
        self._pipeline.warmup()
        segments = 1 if live else 2
        shape = (segments, self.info.features.frames, self.info.features.bins)
        self.forward(np.zeros(shape, np.float32))

    def close(self) -> None:
        """Frees the graphs; the model cannot be used afterwards."""
        self._pipeline.close()

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()], dict[str, object]]:
        if self._again is None or self._pipeline.backend is None:
            raise OptionError(
                "This model was closed, or not made by load_model, so it cannot be pickled or "
                "copied. Call load_model where the model is used."
            )
        return self._again, (), {"auto_filter": self.auto_filter, "decoding": self.decoding}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(
        self,
        *,
        auto_filter: AutoFilter | None = None,
        decoding: SearchName | None = None,
        **wishes: Unpack[Wishes],
    ) -> Request:
        """Checks what a call asks for; arguments and errors of `Request.of`."""
        return Request.of(
            self.info,
            auto_filter=self.auto_filter if auto_filter is None else auto_filter,
            decoding=self.decoding if decoding is None else decoding,
            **wishes,
        )


def _given(outcome: Transcription | Exception) -> Transcription:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _raising(
    run: Generator[Transcription | Exception, None, None],
) -> Generator[Transcription, None, None]:
    with closing(run):
        for outcome in run:
            yield _given(outcome)
