"""Features of the sound that the genre heuristics read: tempo, energy, brightness, and so on.

Contract: `sonic_features` reads blocks once and keeps a few numbers a frame, so memory hardly
depends on the length.  Energy, loudness, centroid and acousticness are as the published program
computes them (frames of 2048 samples, 512 apart, at 22,050 Hz, filled up with zeros at both ends).
Tempo, danceability and valence are our own of the same range: it leaves them to a library's beat
tracker and constant-Q chroma.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

RATE, FRAME, HOP = 22050, 2048, 512
ROLLOFF = 0.85
#: Frames that are transformed at once.
_BATCH = 256
#: Beats per minute that are looked for, and around which (an octave wide) they are likely.
_SLOWEST, _FASTEST, _LIKELY = 30.0, 240.0, 120.0
_MAJOR = (0, 2, 4, 5, 7, 9, 11)
_BRIGHT_HZ, _ROLLOFF_HZ = 4000.0, 8000.0
_QUIETEST = 1e-10

#: Upper end of a range of tempi -> how danceable it is.
_DANCEABLE = (
    *((60.0, 0.3), (70.0, 0.5), (80.0, 0.7), (100.0, 0.9), (130.0, 1.0), (145.0, 0.85)),
    *((160.0, 0.7), (180.0, 0.5)),
)


def sonic_features(blocks: Iterable[Floats]) -> dict[str, float]:
    """Features by their published names.

    Args:
        blocks: Mono float32 samples at `RATE`.

    Returns:
        tempo [BPM], energy, danceability, valence and acousticness 0..1, loudness [dB],
        spectral_centroid_mean [Hz].
    """
    rows, chroma, flux = [], np.zeros(12), []
    before = None
    for frames in _frames(blocks):
        spectrum = np.abs(np.fft.rfft(frames * _HANN, axis=1)).astype(np.float64)
        rows.append(_measures(frames, spectrum))
        chroma += (np.square(spectrum) @ _PITCH_CLASSES).sum(axis=0)
        loud = np.log1p(100 * spectrum)
        last = loud[:1] if before is None else before
        rise = np.diff(np.concatenate([last, loud]), axis=0)
        flux.append(np.maximum(rise, 0).mean(axis=1))
        before = loud[-1:]
    rms, crossings, centroid, rolloff = np.concatenate(rows).T
    tempo, regularity = tempo_of(np.concatenate(flux))
    share = chroma[list(_MAJOR)].sum() / max(chroma.sum(), _QUIETEST)
    return {
        "tempo": tempo,
        "energy": float(np.clip(10 * rms.mean(), 0, 1)),
        "danceability": 0.5 * danceable(tempo) + 0.5 * regularity,
        "valence": float(0.6 * share + 0.4 * min(1.0, centroid.mean() / _BRIGHT_HZ)),
        "acousticness": _acousticness(rms, crossings, centroid, rolloff),
        "loudness": float(20 * math.log10(max(float(rms.mean()), _QUIETEST))),
        "spectral_centroid_mean": float(centroid.mean()),
    }


def tempo_of(onsets: Doubles) -> tuple[float, float]:
    """Tempo and how regular it is, from the strength of onsets in every frame.

    Returns:
        Beats per minute, 120 where there is no pulse; regularity 0..1.
    """
    rate = RATE / HOP
    lags = np.arange(math.ceil(60 * rate / _FASTEST), math.floor(60 * rate / _SLOWEST) + 1)
    centred = onsets - onsets.mean()
    size = 1 << (2 * len(centred)).bit_length()
    power = np.square(np.abs(np.fft.rfft(centred, size)))
    correlation = np.fft.irfft(power, size)[: len(centred)]
    lags = lags[lags < len(correlation) - 1]
    if not len(lags) or correlation[0] <= _QUIETEST:
        return _LIKELY, 0.0
    found = correlation[lags] / correlation[0]
    octaves = np.log2(60 * rate / lags / _LIKELY)
    best = int(np.argmax(found * np.exp(-0.5 * np.square(octaves))))
    if found[best] <= 0:
        return _LIKELY, 0.0
    left, middle, right = correlation[lags[best] - 1 : lags[best] + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    lag = lags[best] + float(np.clip(shift, -0.5, 0.5))
    return float(60 * rate / lag), float(min(1.0, found[best]))


def danceable(tempo: float) -> float:
    """How danceable a tempo is, 0..1."""
    return next((score for end, score in _DANCEABLE if tempo <= end), 0.3)


def _frames(blocks: Iterable[Floats]) -> Iterator[Floats]:
    """Frames [n, FRAME], with half a frame of zeros at both ends."""
    held = np.zeros(FRAME // 2, np.float32)
    for block in chain(blocks, [held]):
        held = np.concatenate([held, block])
        while len(held) >= FRAME + (_BATCH - 1) * HOP:
            yield _cut(held, _BATCH)
            held = held[_BATCH * HOP :]
    if len(held) >= FRAME:
        yield _cut(held, 1 + (len(held) - FRAME) // HOP)


def _cut(samples: Floats, count: int) -> Floats:
    view: Floats = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP][:count]
    return view


def _measures(frames: Floats, spectrum: Doubles) -> Doubles:
    """Root mean square, share of zero crossings, centroid [Hz] and rolloff [Hz]: [n, 4]."""
    total = spectrum.sum(axis=1)
    above = np.cumsum(spectrum, axis=1) >= ROLLOFF * total[:, np.newaxis]
    signs = np.signbit(frames)
    return np.stack(
        [
            np.sqrt(np.square(frames.astype(np.float64)).mean(axis=1)),
            (signs[:, 1:] != signs[:, :-1]).mean(axis=1),
            spectrum @ _HERTZ / np.maximum(total, _QUIETEST),
            _HERTZ[np.argmax(above, axis=1)],
        ],
        axis=1,
    )


def _acousticness(rms: Doubles, crossings: Doubles, centroid: Doubles, rolloff: Doubles) -> float:
    dark = 1 - min(1.0, float(rolloff.mean()) / _ROLLOFF_HZ)
    smooth = 1 - float(crossings.mean())
    electronic = 0.0
    for values, steps in ((rms, (0.5, 0.3)), (centroid, (0.3, 0.2))):
        variation = float(values.std() / max(values.mean(), _QUIETEST))
        electronic += steps[0] if variation < 0.4 else steps[1] if variation < 0.6 else 0.0
    electronic += 0.2 if crossings.mean() > 0.08 else 0.0
    factor = 0.7 if electronic > 0.5 else 0.3
    found = (0.7 * dark + 0.3 * smooth) * (1 - factor * min(1.0, electronic))
    return float(np.clip(found, 0, 1))


def _pitch_classes() -> Doubles:
    """Which pitch class a frequency belongs to: [bins, 12]; none below 27.5 Hz and above 5 kHz."""
    found = np.zeros((len(_HERTZ), 12))
    for index, hertz in enumerate(_HERTZ):
        if 27.5 <= hertz <= 5000:
            found[index, round(69 + 12 * math.log2(hertz / 440)) % 12] = 1
    return found


_HERTZ: Doubles = np.arange(FRAME // 2 + 1).astype(np.float64) * (RATE / FRAME)
_HANN: Floats = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)
_PITCH_CLASSES = _pitch_classes()
