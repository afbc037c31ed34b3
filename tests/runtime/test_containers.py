"""Containers that libsndfile does not read: through PyAV where it is installed, else named."""

from __future__ import annotations

import importlib
import importlib.util
import io
import struct
import warnings
from fractions import Fraction

import numpy as np
import pytest

from mt3_runtime.audio.sources import load_audio, open_audio
from mt3_runtime.errors import AudioError, AudioWarning, OptionError
from tests import needs
from tests.sounds import RATE, id3, patched, sound, tune


@pytest.fixture
def _av() -> None:
    needs.package("av")


needs_av = pytest.mark.usefixtures("_av")


@pytest.fixture(autouse=True)
def _no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", AudioWarning)
        yield


def box(name: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + name + body


def mp4(codec: bytes) -> bytes:
    entry = struct.pack(">I", 36) + codec + bytes(28)
    table = box(b"stsd", struct.pack(">II", 0, 1), entry)
    index = box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", table)))))
    return box(b"ftyp", b"M4A \0\0\0\0") + box(b"free", bytes(99)) + index


ADTS = bytes.fromhex("fff150400e9ffc") + bytes(109)

NAMED = [
    (mp4(b"mp4a"), "MP4 with AAC"),
    (mp4(b"alac"), "MP4 with ALAC"),
    (mp4(b"????"), "MP4"),
    (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm" + bytes(60) + b"A_OPUS\x56\xaa", "WebM with Opus"),
    (b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska" + bytes(60) + b"A_AAC", "Matroska with AAC"),
    (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(99), "WMA or WMV"),
    (b"RIFF\x40\0\0\0AVI LIST" + bytes(60), "AVI"),
    (b"#!AMR\n" + b"\x7c" * 50, "AMR"),
    (b"DSD " + (28).to_bytes(8, "little") + bytes(99), "DSF"),
    (ADTS * 3, "AAC"),
    (id3(500) + ADTS * 3, "AAC"),
    (b"OggS\0\2" + bytes(8) + b"\7" + bytes(11) + b"\1\x50Speex   " + bytes(72), "Ogg Speex"),
]  # fmt: skip

OTHERS = [
    (b"<!DOCTYPE html><html>" + b"x" * 500, r"a web page \(HTML\)"),
    (b"MThd\0\0\0\6\0\1\0\1\1\xe0", "a MIDI file"),
    (b"PK\3\4" + bytes(200), "a ZIP archive"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    (b"#EXTM3U\n/etc/passwd\n", "a playlist"),
    (b'{"error": "not found"}', "a JSON text"),
    ("Größe: 3 kB\n".encode() * 900, "text"),
    (bytes(5000), "zeros"),
]


@pytest.mark.parametrize(("data", "name"), NAMED)
def test_without_pyav_a_refusal_says_what_the_file_is(data, name, monkeypatch):
    real = importlib.import_module

    def refuse(module):
        if module == "av":
            raise ImportError(module)
        return real(module)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(AudioError, match=rf"this is {name}, which .* pip install '\.\[formats\]'"):
        load_audio(io.BytesIO(data))


@pytest.mark.parametrize(("data", "name"), NAMED)
def test_containers_can_be_kept_away_from_pyav(data, name, monkeypatch):
    def refuse(module):
        raise AssertionError(module)

    monkeypatch.setattr("mt3_runtime.audio.containers.av_container.importlib.import_module", refuse)
    with pytest.raises(AudioError, match=rf"this is {name}, and only what libsndfile reads"):
        open_audio(io.BytesIO(data), containers=False)


@pytest.mark.parametrize(("data", "name"), OTHERS)
def test_what_is_no_audio_is_named(data, name):
    with pytest.raises(AudioError, match=f"not audio that can be decoded .this is {name}"):
        load_audio(io.BytesIO(data))


def test_a_stream_that_is_open_is_taken_as_it_is():
    expected = load_audio(io.BytesIO(sound("flac")))
    stream = open_audio(io.BytesIO(sound("flac")), containers=False)
    assert np.array_equal(load_audio(stream), expected)
    stream = open_audio(io.BytesIO(sound("flac")), target_rate=8000)
    with pytest.raises(OptionError, match="resampled to 8000 Hz"):
        load_audio(stream)


# ---------------------------------------------------------------- with PyAV

ENCODED = [  # container, codec, sample format, and the encoder's delay where nothing states it
    ("mp4", "aac", "fltp", 0),
    ("mov", "alac", "s16p", 0),
    ("caf", "alac", "s16p", 0),
    ("mp4", "libopus", "flt", 0),
    ("webm", "libopus", "flt", 0),
    ("webm", "libvorbis", "fltp", 0),
    ("matroska", "flac", "s16", 0),
    ("asf", "wmav2", "fltp", -2048),  # as FFmpeg reads what its own encoder writes
    ("adts", "aac", "fltp", 1024),
    ("mpegts", "aac", "fltp", 1024),
    ("avi", "ac3", "fltp", 256),
    ("wv", "wavpack", "fltp", 0),
    ("tta", "tta", "s16", 0),
    ("ogg", "libspeex", "s16", None),
]


def encoded(
    container: str,
    codec: str,
    form: str,
    seconds: float = 3.0,
    tracks: int = 1,
    layout: str = "mono",
) -> bytes:
    import av

    rate = {"libopus": 48000, "libspeex": 32000}.get(codec, RATE)
    samples = tune(seconds, rate)[:, 0]
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=container) as file:
            options = {"rate": rate, "layout": layout, "bit_rate": 128000}
            streams = [file.add_stream(codec, **options) for _ in range(tracks)]
            for stream in streams:
                resampler = av.AudioResampler(format=form, layout=layout, rate=rate)
                frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
                for ready in [*resampler.resample(frame), None]:
                    file.mux(stream.encode(ready))
    except (av.error.FFmpegError, ValueError) as error:
        needs.missing("encoders", f"FFmpeg writes no {codec} in {container}: {error}")
    return buffer.getvalue()


def lag(samples: np.ndarray, reference: np.ndarray) -> int:
    """Samples by which a signal comes later than another one."""
    size = len(samples) + len(reference)
    product = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(reference, size))
    at = int(np.argmax(np.fft.irfft(product, size)))
    return at - size if at > size // 2 else at


@needs_av
@pytest.mark.parametrize(("container", "codec", "form", "delay"), ENCODED)
def test_containers_give_the_sound_back_at_its_time(container, codec, form, delay):
    data = encoded(container, codec, form)
    with open_audio(io.BytesIO(data)) as stream:
        rate, duration = stream.source_rate, stream.duration
    samples = load_audio(io.BytesIO(data), target_rate=rate)
    reference = tune(3.0, rate)[:, 0]
    assert len(samples) / rate == pytest.approx(3.0, abs=0.1)
    if duration is not None:
        assert duration == pytest.approx(len(samples) / rate, abs=0.1)
    if delay is not None:
        assert lag(samples, reference) == delay
    with pytest.raises(AudioError, match="only what libsndfile reads|Supported file format"):
        load_audio(io.BytesIO(data), containers=False)


@needs_av
def test_an_mp4_that_is_cut_damaged_or_joined():
    data = encoded("mp4", "aac", "fltp")
    samples = load_audio(io.BytesIO(data))
    joined = load_audio(io.BytesIO(data + data))
    assert np.abs(joined[: len(samples) - 200] - samples[:-200]).max() < 1e-5
    assert len(joined) == pytest.approx(2 * len(samples), abs=2)
    body = data.index(b"mdat") + 4
    with pytest.warns(AudioWarning, match=r"could not be decoded|ends early"):
        load_audio(io.BytesIO(patched(data, body + 9000, b"\xff" * 3000)))
    with pytest.raises(AudioError, match="MP4 that FFmpeg cannot read"):
        load_audio(io.BytesIO(data[: body + 9000]))  # its index stands at the end


@needs_av
def test_webm_that_is_cut_and_matroska_joined():
    data = encoded("webm", "libopus", "flt")
    with pytest.warns(AudioWarning, match=r"ends early: [12]\.\d\d s of 3\.\d\d s could be read"):
        load_audio(io.BytesIO(data[: len(data) // 2]))
    assert len(load_audio(io.BytesIO(data + data))) / 16000 == pytest.approx(6.0, abs=0.1)


@needs_av
def test_aac_that_changes_its_rate():
    data = encoded("adts", "aac", "fltp")
    other = encoded("adts", "aac", "fltp", 1.0)
    assert len(load_audio(io.BytesIO(data + other + data))) / 16000 == pytest.approx(7.0, abs=0.2)


@needs_av
@pytest.mark.parametrize(
    ("container", "codec", "form"), [("mp4", "aac", "fltp"), ("mov", "alac", "s16p")]
)
@pytest.mark.parametrize("layout", ["stereo", "5.1", "7.1"])
def test_many_channels_become_their_mean(container, codec, form, layout):
    data = encoded(container, codec, form, layout=layout)
    channels = {"stereo": 2, "5.1": 6, "7.1": 8}[layout]
    samples = load_audio(io.BytesIO(data), target_rate=RATE)
    reference = tune(3.0)[:, 0]
    assert lag(samples, reference) == 0
    gain = np.dot(samples[: len(reference)], reference) / np.dot(reference, reference)
    assert 0.8 / channels < gain < 1.2  # FFmpeg puts mono into one channel, or into some


@needs_av
def test_the_other_tracks_are_spoken_of():
    data = encoded("matroska", "flac", "s16", tracks=2)
    with pytest.warns(AudioWarning, match="holds 2 audio tracks, of which only the first was read"):
        assert len(load_audio(io.BytesIO(data))) == pytest.approx(48000, abs=2)


@needs_av
def test_a_container_behind_another_file():
    data = sound("mp3") + encoded("mp4", "aac", "fltp", 1.0)
    assert len(load_audio(io.BytesIO(data))) / 16000 == pytest.approx(4.0, abs=0.1)
    with pytest.warns(AudioWarning, match=r"bytes from byte \d+ on that are not audio that can be"):
        assert len(load_audio(io.BytesIO(data), containers=False)) == 48000


@needs_av
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_mutated_containers_end_in_audio_or_in_one_error(kind):
    data = encoded(
        kind, {"mp4": "aac", "webm": "libopus"}[kind], "fltp" if kind == "mp4" else "flt", 0.5
    )
    rng = np.random.default_rng(5)
    for _ in range(60):
        at = rng.integers(0, len(data), 3)
        changed = bytearray(data)
        for place in at:
            changed[place] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            try:
                samples = load_audio(io.BytesIO(bytes(changed)))
            except AudioError:
                continue
        assert np.isfinite(samples).all()


@needs_av
def test_a_file_object_that_fails_below_pyav():
    class Failing(io.BytesIO):
        def read(self, count=-1):
            if self.tell() > 9000:
                raise OSError("Input/output error")
            return super().read(count)

    with pytest.raises(AudioError, match="cannot be read: Input/output error"):
        load_audio(Failing(encoded("webm", "libopus", "flt")))
