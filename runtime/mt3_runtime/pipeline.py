"""From audio to tokens and notes: how the steps are joined, behind the public face of `Model`.

Contract: a `Pipeline` joins a manifest's features and segments to a backend's decoding loop.  What
a call asks for is in its `Request`, so threads may share a pipeline.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from mt3_runtime.audio.log_mel import FeatureExtractor
from mt3_runtime.audio.segments import cut
from mt3_runtime.audio.sources import AudioSource, AudioStream, open_audio
from mt3_runtime.decoding.batching import decode
from mt3_runtime.decoding.search import previous_ids
from mt3_runtime.decoding.types import Decoded, Ended, Job, Jobs, Span
from mt3_runtime.errors import OptionError, ResultWarning
from mt3_runtime.recording import Recording, assemble
from mt3_runtime.transcription import Progress, Transcription

if TYPE_CHECKING:
    from mt3_runtime.backends.base import Backend, FloatArray
    from mt3_runtime.bundles.bundle import Manifest
    from mt3_runtime.notes.note import Note
    from mt3_runtime.request import Request


class Pipeline:
    """A model's steps on a device.

    Attributes:
        backend: Where the graphs run; None for none, and once it was closed.
    """

    def __init__(self, info: Manifest, backend: Backend | None) -> None:
        self._info, self.backend = info, backend
        self._extract = FeatureExtractor(info.features)

    def close(self) -> None:
        """Frees the graphs."""
        if self.backend is not None:
            self.backend.close()
            self.backend = None

    def warmup(self) -> None:
        """Prepares the device; without one there is nothing to do."""
        if self.backend is not None:
            self.backend.warmup()

    def jobs(self, blocks: Iterable[FloatArray]) -> Jobs:
        """The segments of a recording, from blocks of samples [n]."""
        for segment in cut(blocks, self._info.segments):
            features = partial(self._extract, segment.samples)
            yield Job(Span(segment.index, segment.start, segment.next_start), features)

    def span(self, index: int, *, last: bool = False) -> Span:
        """Where the segment of that number lies."""
        start = self._info.segments.start
        return Span(index, start(index), None if last else start(index + 1))

    def _decode(
        self, recordings: Iterable[Jobs], request: Request, *, live: bool = False, lone: bool
    ) -> Generator[Decoded | Ended, None, None]:
        if self.backend is None:
            raise OptionError("This model has no device, or was closed; load it again.")
        spec = self._info.decoding
        remember = partial(previous_ids, spec=spec) if spec.memory_tokens else None
        search = request.search
        return decode(self.backend, recordings, search, remember=remember, live=live, lone=lone)

    def segments(
        self, jobs: Jobs, request: Request, *, live: bool = False
    ) -> Generator[Decoded, None, None]:
        """Decodes one recording; raises what reading it raises."""
        with closing(self._decode([jobs], request, live=live, lone=True)) as run:
            for item in run:
                if isinstance(item, Decoded):
                    yield item
                elif item.error is not None:
                    raise item.error

    def stream(self, opened: AudioStream, request: Request, *, live: bool) -> Iterator[Note]:
        """What `Model.stream` yields of one recording, which is closed in the end."""
        assembler, leakage = request.assembler(), request.leakage()
        selection, found = request.selection(), 0
        jobs = self.jobs(leakage.listen(opened.with_warnings()))
        with opened, closing(self.segments(jobs, request, live=live)) as run:
            for decoded in run:
                notes, _ = assemble(assembler, decoded.span, decoded.sequences)
                found += len(notes)
                yield from selection.keep(leakage.live(notes, decoded.span.next_start))
        notes = assembler.finish()
        yield from selection.keep(leakage.live(notes, None))
        for sentence in selection.sentences(found + len(notes)):
            warnings.warn(sentence, ResultWarning, stacklevel=2)

    def transcribe(
        self,
        sources: Iterable[AudioSource],
        sr: float | None,
        request: Request,
        *,
        progress: Callable[[int, Progress], None] | None,
    ) -> Generator[Transcription | Exception, None, None]:
        """What `Model.transcribe_many` yields; arguments as there."""
        rate = self._info.segments.sample_rate
        under_way: dict[int, Recording] = {}
        waiting: dict[int, Transcription | Exception] = {}  # for their turn

        def recordings() -> Iterator[Jobs]:
            for number, source in enumerate(sources):
                recording = Recording(request)
                under_way[number] = recording
                opened = partial(open_audio, source, sr=sr, target_rate=rate)
                yield recording.jobs(opened, self.jobs)

        lone, following = isinstance(sources, Sized) and len(sources) == 1, 0
        with closing(self._decode(recordings(), request, lone=lone)) as run:
            for item in run:
                if isinstance(item, Decoded):
                    now = under_way[item.recording].add(item)
                    if progress:
                        progress(item.recording, now)
                    continue
                recording = under_way.pop(item.recording)
                waiting[item.recording] = item.error or recording.result(self._info.name)
                while following in waiting:
                    yield waiting.pop(following)
                    following += 1
