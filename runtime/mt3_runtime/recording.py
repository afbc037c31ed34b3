"""One recording on its way from audio to notes: what lies on both sides of the decoding loop.

Contract: `Recording.jobs` reads the audio and cuts it into segments, on a reader's thread;
`Recording.add` takes what was decoded of them, in their order, on the thread that wants the result,
and `Recording.result` is that result once the last one was added.  While a recording still runs,
`Recording.judge` or `Recording.events` take the place of `add`.

`transcriptions` takes whole recordings through a loop; nothing else stands between the two.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from mt3_runtime.arguments.argument_checks import as_callback, as_flag
from mt3_runtime.audio.sources import is_file, may_block, open_blocks
from mt3_runtime.decoding.batching import Loop
from mt3_runtime.decoding.strands import Priority
from mt3_runtime.decoding.types import Decoded, Ended, Job, Jobs, Sequence, Span
from mt3_runtime.errors import MT3Error, OptionError, ResultWarning
from mt3_runtime.notes.base import ChannelTokens
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_events import NoteEvent, NoteEvents
from mt3_runtime.reading.local_reading import LocalReading
from mt3_runtime.reading.reading_plan import extractor
from mt3_runtime.transcription import Progress, Transcription, as_sequences, by_onset, update_digest

if TYPE_CHECKING:
    import numpy.typing as npt

    from mt3_runtime.audio.segments import SegmentConfig
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.backends.base import FloatArray
    from mt3_runtime.bundles.manifest import Manifest
    from mt3_runtime.decoding.decoding_run import Run
    from mt3_runtime.leakage.leakage_filter import Judged
    from mt3_runtime.notes.base import Assembler, SegmentReport
    from mt3_runtime.reading.pooled_reading import PooledReading
    from mt3_runtime.reading.reader_pool import ReaderPool
    from mt3_runtime.request import Request
    from mt3_runtime.transcription import Tell

Reading: TypeAlias = "LocalReading | PooledReading"

ProgressOf = Callable[[int, Progress], None]  # is told how far a recording is, by its number


class Recording:
    """Reads and collects one recording.

    Args:
        request: What is asked for.
        opened: Opens the audio.
        live: It is played right now.
        slow: Whether reading may take long, as of a pipe.
        measurable: The audio may be opened more than once.
        tell: Is told of its segments.
    """

    def __init__(
        self,
        request: Request,
        opened: Callable[[], Reading],
        *,
        live: bool = False,
        slow: bool = False,
        measurable: bool = False,
        tell: Tell | None = None,
    ) -> None:
        self.request, self.live, self.slow = request, live, live or slow
        self._tell, self._events = as_callback("events", tell), NoteEvents()
        self._opened, self._measurable = opened, measurable
        self._assembler = request.assembler()
        self._leakage, self._selection = request.leakage(), request.selection()
        self._reports: list[SegmentReport] = []
        self._digest = hashlib.sha256()
        self._reading: Reading | None = None
        self._length: float | None = None
        self._samples = self._notes = self._judged = 0
        self._end = 0.0

    @classmethod
    def of(
        cls,
        request: Request,
        source: AudioSource,
        sr: float | None,
        pool: ReaderPool | None = None,
        tell: Tell | None = None,
    ) -> Recording:
        """A recording of a file or an array; arguments of `open_audio`.

        Nothing of a file is looked at in this process if there is a pool of others.
        """
        slow, once = may_block(source), hasattr(source, "read")
        opened = partial(pool.open if pool else LocalReading, source, request.plan, sr=sr)
        once = once or slow or (pool is not None and is_file(source))
        return cls(request, opened, slow=slow, measurable=not once, tell=tell)

    @classmethod
    def streamed(
        cls,
        request: Request,
        audio: AudioSource | Iterable[npt.ArrayLike],
        sr: float | None,
        live: bool | None,  # noqa: FBT001  as in `Model.stream`
    ) -> Recording:
        """A recording whose notes are wanted while it runs; opens it at once."""
        if live is None:
            live = isinstance(audio, Iterator) and not hasattr(audio, "read")
        if as_flag("live", live):
            return cls.live_blocks(request, cast("Iterable[npt.ArrayLike]", audio), sr)
        source = cast("AudioSource", audio)
        opened, slow = LocalReading(source, request.plan, sr=sr), may_block(source)
        return cls(request, lambda: opened, slow=slow)

    @classmethod
    def live_blocks(
        cls, request: Request, blocks: Iterable[npt.ArrayLike], sr: float | None
    ) -> Recording:
        """A recording of blocks being played; ``sr`` is the model's if None."""
        rate = request.plan.rate
        stream = open_blocks(blocks, sr=rate if sr is None else sr, target_rate=rate)
        opened = LocalReading(stream, request.plan)
        return cls(request, lambda: opened, live=True)

    def jobs(self) -> Jobs:
        """The segments; opens the audio at the first one and closes it behind the last."""
        with self._opened() as reading:
            self._reading = reading
            for part in reading:
                self._samples += part.samples
                if part.salience is not None:
                    self._leakage.take(part.salience)
                span = span_of(self.request.info.segments, part.index, last=part.last)
                yield Job(span, partial(_same, part.data))

    def begin(self, loop: Loop, *, window: int | None = None, **how: Any) -> Run:
        """A run of this recording alone; arguments as of `Loop.open` and `submit`."""
        run = loop.open(window=window)
        self.submit(run, **how)
        run.end()
        return run

    def length(self) -> float | None:
        """Seconds; None if that is not known, or not yet."""
        return self._reading.duration if self._reading else self._length

    def measure(self) -> None:
        """Looks how long it is, where that takes no reading; what is wrong is told later."""
        if self._measurable:
            with suppress(MT3Error, OSError), self._opened() as reading:
                self._length = reading.duration

    def take(self, item: Decoded | Ended) -> Progress | Transcription | Exception:
        """Takes in what the loop gave: `add`, `result`, or what reading or decoding raised."""
        if isinstance(item, Decoded):
            return self.add(item)
        return item.error or self.result()

    def add(self, decoded: Decoded) -> Progress:
        """Takes in the next segment and returns how far the recording is."""
        notes, report = assemble(self._assembler, decoded.span, decoded.sequences)
        self._leakage.add(notes, decoded.span.next_start)
        self._reports.append(report)
        for sequence in decoded.sequences:
            update_digest(self._digest, sequence)
        self._notes += report.notes
        return self._told(notes, self._assembler.sounding(), decoded.span.next_start)

    def result(self) -> Transcription:
        """Ends the recording."""
        self._told(rest := self._assembler.finish(), (), None)
        self._leakage.add(rest, None)
        kept, leakage = self._leakage.finish()
        starts = [report.start for report in self._reports]
        notes, smoothing = self.request.smoothed(kept, starts)
        sure = self._selection.keep(notes)
        remarks = self._selection.sentences(leakage.notes)
        for remark in remarks:
            warnings.warn(remark, ResultWarning, stacklevel=2)
        return Transcription(
            notes=by_onset(sure),
            segments=tuple(self._reports),
            duration=self._seconds,
            model=self.request.info.name,
            token_digest=self._digest.hexdigest(),
            removed_notes=self._selection.removed,
            audio_warning=self._reading.warning if self._reading else None,
            leakage=leakage,
            smoothing=smoothing,
            remarks=(*(self._reading.level_warnings if self._reading else ()), *remarks),
        )

    def judge(self, decoded: Decoded | None) -> list[Judged]:
        """The notes that end in the next segment, and what becomes of each.

        Args:
            decoded: The segment; None behind the last one.
        """
        if decoded is None:
            notes, end = self._assembler.finish(), None
        else:
            notes, _ = assemble(self._assembler, decoded.span, decoded.sequences)
            end = decoded.span.next_start
        self._judged += len(notes)
        judged = [
            (note, became if became is not None and self._selection.keep([became]) else None)
            for note, became in self._leakage.judge(notes, end)
        ]
        if decoded is None:
            for sentence in self._selection.sentences(self._judged):
                warnings.warn(sentence, ResultWarning, stacklevel=2)
        return judged

    def submit(self, run: Run, *, priority: Priority | None = None, client: str = "") -> int:
        """Hands it to the loop; returns its number in the run."""
        if priority is None:
            priority = Priority.LIVE if self.live else Priority.INTERACTIVE
        return run.add(
            self.jobs(),
            self.request.search,
            priority=priority,
            client=client,
            live=self.live,
            slow=self.slow,
            seconds=self.length,
        )

    def notes(self, opened: Callable[[], Run]) -> Iterator[Note]:
        """The notes, as soon as the segment in which they end is decoded.

        Args:
            opened: Gives the run that decodes it, and nothing else.
        """
        with opened() as run:
            for decoded in chain(_segments(run), (None,)):
                yield from (note for _, note in self.judge(decoded) if note is not None)

    def events(self, opened: Callable[[], Run]) -> Iterator[NoteEvent]:
        """The events of notes that begin and end; arguments of `notes`."""
        events, end = NoteEvents(), 0.0
        with opened() as run:
            for decoded in _segments(run):
                judged, end = self.judge(decoded), decoded.span.next_start or self._seconds
                yield from events.add(judged, self._assembler.sounding(), end)
        yield from events.add(self.judge(None), (), end)

    def _told(self, ended: list[Note], sounding: Iterable[Note], end: float | None) -> Progress:
        progress = Progress(end or self._seconds, self.length(), self._notes)
        if self._tell is not None:
            pairs = zip(ended, ended, strict=True)
            self._tell(self._events.add(pairs, sounding, progress.seconds_done), progress)
        return progress

    @property
    def _seconds(self) -> float:
        return self._samples / self.request.plan.rate


def transcriptions(
    loop: Loop,
    recordings: Iterable[Recording],
    request: Request,
    *,
    priority: Priority,
    progress: ProgressOf | None = None,
    raising: bool = False,
    pool: ReaderPool | None = None,
) -> Generator[Transcription | Exception, None, None]:
    """Takes recordings through a loop; what goes wrong with one of them takes its place.

    Args:
        loop: Where they are decoded.
        recordings: Looked at on a thread of its own, as there is room for them.
        request: Of all of them.
        priority: Of all of them.
        progress: Called after every segment, on the thread that takes the results.
        raising: What goes wrong is raised in its place, which ends all.
        pool: Which reads them; it is closed at the end.

    Yields:
        One result for each, in their order.
    """
    under_way: dict[int, Recording] = {}
    waiting: dict[int, Transcription | Exception] = {}  # for their turn

    def jobs() -> Iterator[Jobs]:
        for number, recording in enumerate(recordings):
            under_way[number] = recording
            yield recording.jobs()

    following = 0
    with open_run(loop, pool) as run:
        if isinstance(recordings, list) and len(recordings) == 1:
            under_way[0] = recordings[0]
            recordings[0].submit(run, priority=priority)
            run.end()
        else:
            run.feed(jobs(), request.search, priority=priority, company=True)
        for item in run.results():
            number = item.recording
            try:
                outcome = under_way[number].take(item)
            except Exception as error:  # noqa: BLE001  it is this recording's alone
                run.cancel(number)
                outcome = error
            if isinstance(outcome, Progress):
                if progress:
                    progress(number, outcome)
                continue
            waiting[number] = outcome
            del under_way[number]
            while following in waiting:
                result = waiting.pop(following)
                if raising and isinstance(result, Exception):
                    raise result
                yield result
                following += 1


def open_run(loop: Loop, pool: ReaderPool | None) -> Run:
    """A run whose recordings a pool reads, if there is one, which then ends with the run."""
    if pool is None:
        return loop.open()
    run = loop.open(readers=pool.count)
    run.when_closed(pool.close)
    return run


def _segments(run: Run) -> Iterator[Decoded]:
    """What is decoded of the only recording of a run; raises what reading it raised."""
    for item in run.results():
        if isinstance(item, Decoded):
            yield item
        elif item.error is not None:
            raise item.error


def _same(features: FloatArray) -> FloatArray:
    return features


def feature_jobs(features: FloatArray, info: Manifest) -> Jobs:
    """The segments of a recording of which the features [segments, frames, bins] are there.

    Raises:
        OptionError: They have another type or shape, or hold NaN or infinity.
    """
    features = extractor(info.features).checked(features)
    last = len(features) - 1
    spans = (span_of(info.segments, index, last=index == last) for index in range(last + 1))
    return (Job(span, partial(_same, row)) for span, row in zip(spans, features, strict=True))


def span_of(config: SegmentConfig, index: int, *, last: bool = False) -> Span:
    """Where the segment of that number lies."""
    return Span(index, config.start(index), None if last else config.start(index + 1))


def notes_of(tokens: Iterable[Sequence], request: Request) -> tuple[Note, ...]:
    """The notes of the tokens of consecutive segments.

    Args:
        tokens: The sequences of all channels of the first segment, then those of the second, ...
        request: What is asked for.

    Raises:
        OptionError: They are no sequences, or no whole number of segments.
    """
    info = request.info
    tokens = as_sequences(tokens)
    channels = info.model.channels
    count, rest = divmod(len(tokens), channels)
    if rest:
        raise OptionError(
            f"This model has {channels} sequences per segment; {len(tokens)} are no whole "
            "number of segments."
        )
    assembler, left, notes = request.assembler(), iter(tokens), list[Note]()
    for index in range(count):
        span = span_of(info.segments, index, last=index + 1 == count)
        notes += assemble(assembler, span, islice(left, channels))[0]
    return by_onset(notes + assembler.finish())


def assemble(
    assembler: Assembler, span: Span, sequences: Iterable[Sequence]
) -> tuple[list[Note], SegmentReport]:
    """Hands a segment to the assembler; returns the notes that are settled now, and its report."""
    channels = [ChannelTokens(s.tokens, np.exp(s.log_probs), s.truncated) for s in sequences]
    return assembler.add_channels(channels, span.start, span.next_start)
