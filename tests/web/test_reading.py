"""WAV files, rates and resampling in JavaScript, against libsndfile and soxr."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mt3_runtime.audio.sources import load_audio
from tests import needs
from tests.web.test_javascript import BROWSERS, _run

soundfile = needs.package("soundfile")
soxr = needs.package("soxr")

SCRIPT = Path(__file__).with_name("reading.mjs")


def _noise(rate: int, channels: int, seconds: float = 0.5) -> np.ndarray:
    random = np.random.default_rng(rate + channels)
    return np.clip(random.normal(0, 0.2, (int(rate * seconds), channels)), -1, 1)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_samples_of_wav_files_are_those_of_libsndfile(subtype, channels, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, _noise(16000, channels), 16000, subtype=subtype)
    _run(needs.tool("node"), SCRIPT, 0, tmp_path, path)
    found = np.fromfile(tmp_path / "sound.wav.f32", np.float32)
    np.testing.assert_array_equal(found, load_audio(path, target_rate=16000))


def test_extensible_files_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, _noise(48000, 2), 48000, subtype="PCM_24", format="WAVEX")
    _run(needs.tool("node"), SCRIPT, 0, tmp_path, path)
    expected = load_audio(path, target_rate=48000)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "sound.wav.f32", np.float32), expected)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_resampling_is_nearly_that_of_soxr(rate: int, tmp_path: Path) -> None:
    """White noise, which is loudest where the two could differ: the edge of the passband."""
    path = tmp_path / "sound.wav"
    samples = _noise(rate, 1)[:, 0].astype(np.float32)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    _run(needs.tool("node"), SCRIPT, 16000, tmp_path, path)
    found = np.fromfile(tmp_path / "sound.wav.f32", np.float32)
    assert len(found) == math.ceil(len(samples) * 16000 / rate)
    expected = load_audio(path, target_rate=16000)[: len(found)]
    middle = slice(200, len(expected) - 200)
    difference = np.sqrt(np.mean((found[: len(expected)] - expected)[middle] ** 2.0))
    assert 20 * np.log10(difference / np.sqrt(np.mean(expected[middle] ** 2.0))) < -60


@pytest.mark.parametrize(
    ("name", "rate"), [("sound.flac", 44100), ("sound.flac", 96000), ("sound.mp3", 22050)]
)
def test_the_rate_of_other_files_is_found(name: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / name
    soundfile.write(path, _noise(rate, 2), rate)
    assert _run(needs.tool("node"), SCRIPT, 16000, tmp_path, path) == f"{name} {rate}\n"


@pytest.mark.parametrize("browser", BROWSERS)
def test_browsers_begin_where_we_do(browser: str, tmp_path: Path) -> None:
    """Encoders put silence before the sound; what says how much may be missing."""
    program = needs.tool(BROWSERS[browser], browser)
    needs.node_modules()
    rate = 44100
    clicks = np.zeros(2 * rate, np.float32)
    for second in (0.25, 0.5, 1.0, 1.5):  # of noise: a decoder of MP3 keeps its shape
        at = int(second * rate)
        clicks[at : at + 400] = np.random.default_rng(at).uniform(-0.8, 0.8, 400)
    names = ["sound.mp3", "sound.flac", "sound.ogg", "sound.wav"]
    for name in names:
        soundfile.write(tmp_path / name, clicks, rate)
    out = tmp_path / "out"
    out.mkdir()
    script = SCRIPT.with_name("read_in_browser.mjs")
    _run(needs.tool("node"), script, program, out, *(tmp_path / name for name in names))
    for name in names:
        found = np.fromfile(out / f"{name}.f32", np.float32).astype(np.float64)
        expected = load_audio(tmp_path / name, target_rate=16000).astype(np.float64)
        size = len(found) + len(expected)
        products = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size)))
        assert int(np.argmax(products)) == 0, name
        least = min(len(found), len(expected))
        assert abs(len(found) - len(expected)) <= 2304 * 16000 / rate, name
        difference = np.mean((found[:least] - expected[:least]) ** 2)
        assert 10 * np.log10(difference / np.mean(expected**2)) < -40, name
