"""Many recordings through one batch: order, errors, progress, reading ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from mt3_runtime.errors import AudioError, AudioNotFoundError, AudioWarning, OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.transcription import Progress, Transcription

Audio = npt.NDArray[np.float32]


def essence(result: object) -> tuple[object, ...]:
    """A result without probabilities, whose last bits depend on the neighbours in some profiles."""
    assert isinstance(result, Transcription)
    notes = [(n.onset, n.offset, n.pitch, n.velocity, n.program, n.is_drum) for n in result.notes]
    return notes, result.segments, result.duration, result.model, result.token_digest


@pytest.fixture
def takes(audio: Audio) -> list[Audio]:
    """Recordings of very different lengths."""
    return [audio[:70000], audio[:500], audio, audio[90000:], audio[20000:60000]]


def test_each_gets_what_it_gets_alone_in_the_order_of_the_sources(
    tiny_bundle: Path, takes: list[Audio]
) -> None:
    with load_model(tiny_bundle, threads=3) as model:
        alone = [essence(model.transcribe_notes(take)) for take in takes]
        assert [*map(essence, model.transcribe_many(takes))] == alone
        assert [*map(essence, model.transcribe_many(reversed(takes)))] == alone[::-1]
        assert [*map(essence, model.transcribe_many(takes[:1]))] == alone[:1]
        assert list(model.transcribe_many([])) == []


def test_options_reach_every_recording(tiny_model: Model, takes: list[Audio]) -> None:
    found = tiny_model.transcribe_many(takes[:2], decoding="t5x", exclude="drums", sr=8000)
    for take, result in zip(takes, found, strict=False):
        alone = tiny_model.transcribe_notes(take, decoding="t5x", exclude="drums", sr=8000)
        assert essence(result) == essence(alone)
        assert result.duration == pytest.approx(len(take) / 8000)


def test_an_error_takes_the_place_of_its_recording(
    tiny_model: Model, takes: list[Audio], tmp_path: Path
) -> None:
    torn = takes[0].copy()
    torn[60000] = np.nan  # found out when the first segment is under way
    sources = [takes[1], tmp_path / "missing.wav", torn, takes[3]]
    before = threading.active_count()
    found = list(tiny_model.transcribe_many(sources, return_exceptions=True))
    assert [type(item) for item in found] == [
        Transcription,
        AudioNotFoundError,
        AudioError,
        Transcription,
    ]
    for at, take in ((0, takes[1]), (3, takes[3])):
        assert essence(found[at]) == essence(tiny_model.transcribe_notes(take))
    assert threading.active_count() <= before


def test_without_that_it_is_raised_in_its_place(tiny_model: Model, takes: list[Audio]) -> None:
    run = tiny_model.transcribe_many([takes[0], np.zeros(0, np.float32), takes[1]])
    assert essence(next(run)) == essence(tiny_model.transcribe_notes(takes[0]))
    before = threading.active_count()
    with pytest.raises(AudioError, match="no samples"):
        next(run)
    assert threading.active_count() <= before
    assert list(run) == []


def test_a_broken_list_of_sources_ends_it(tiny_model: Model, takes: list[Audio]) -> None:
    def sources() -> Iterator[Audio]:
        yield takes[1]
        raise LookupError("the list is broken")

    with pytest.raises(LookupError, match="the list is broken"):
        list(tiny_model.transcribe_many(sources(), return_exceptions=True))


def test_progress_says_of_which_recording(tiny_model: Model, takes: list[Audio]) -> None:
    seen: dict[int, list[Progress]] = {number: [] for number in range(len(takes))}
    caller = threading.get_ident()

    def progress(number: int, now: Progress) -> None:
        assert threading.get_ident() == caller
        seen[number].append(now)

    found = list(tiny_model.transcribe_many(takes, progress=progress))
    for number, result in enumerate(found):
        assert len(seen[number]) == len(result.segments)
        assert seen[number][-1].seconds_done == pytest.approx(result.duration)
        assert seen[number][-1].notes == sum(report.notes for report in result.segments)


def test_sources_are_read_as_needed(tiny_model: Model, audio: Audio) -> None:
    """A consumer that stops holds up the reading, and results come before the end of the list."""
    read = 0

    def sources() -> Iterator[Audio]:
        nonlocal read
        while True:
            read += 1
            yield audio

    run = tiny_model.transcribe_many(sources())
    first = next(run)
    assert essence(first) == essence(next(run))
    run.close()  # type: ignore[attr-defined]
    stopped = read
    assert stopped < 40
    assert read == stopped


def test_one_recording_is_no_list(tiny_model: Model, tmp_path: Path) -> None:
    for source in ("song.wav", tmp_path, b"RIFF", (tmp_path / "x").open("wb")):
        with pytest.raises(OptionError, match="put a single one into a list"):
            tiny_model.transcribe_many(source)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="greedy, t5x"):
        tiny_model.transcribe_many([], decoding="best")  # type: ignore[arg-type]


def test_each_knows_what_could_not_be_read(tiny_model: Model, audio: Audio, tmp_path: Path) -> None:
    for name in ("whole.wav", "cut.wav"):
        soundfile.write(tmp_path / name, audio, 16000)
    data = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    names = [tmp_path / "whole.wav", tmp_path / "cut.wav", tmp_path / "whole.wav"]
    with pytest.warns(AudioWarning, match=r"cut\.wav ends early"):
        found = list(tiny_model.transcribe_many(names))
    assert [bool(result.audio_warning) for result in found] == [False, True, False]
    assert "cut.wav ends early" in found[1].warnings[0]
    assert found[0].warnings == found[2].warnings == []
