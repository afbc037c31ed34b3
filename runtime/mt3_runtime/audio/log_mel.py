"""Log-mel spectrograms as the networks were trained on, in NumPy alone.

Contract: :class:`FeatureExtractor` maps the samples of ONE segment to float32 [frames, bins].  A
segment knows nothing of its neighbours; computing one long spectrogram and slicing it would give
other values.  The published models differ in five steps, all data in :class:`FeatureConfig`:

* framing.  ``"leading"`` (Magenta, MR-MT3): frame i sees samples [i * hop, i * hop + fft_size) and
  zeros beyond the end, so the last frames of every segment fade out.  Rows after the audio are
  exactly 0.0, which is *not* silence (silence is ln 1e-5 = -11.5): the networks were trained on
  that.  ``"centred"`` (YourMT3): frame i is centred on sample i * hop, the ends are mirrored.
* power of the magnitude, 1 or 2.
* filters.  ``"triangles_in_mel"`` (Magenta, that is TensorFlow), ``"triangles_in_hz"`` (torchaudio;
  the weights differ by up to 7e-4) or ``"none"`` (the frequencies themselves, without DC).
* floor.  ``"replace"``: it takes the place of exact zeros; ``"add"``: it is added.  Then ln.
* scaling.  ``"none"``; ``"fixed"`` (MR-MT3): clipped to a range that becomes 0..1; ``"segment"``
  (YourMT3): each segment's own minimum and maximum become 0 and nearly 1.

Window and filters are evaluated in float32, as the originals do; float64 would be further from what
the weights have seen.  A segment of 2 s costs one core 1.4 ms, nearly all of it the FFT.  Each
filter touches few frequencies, so the filters are applied in bands: small products that OpenBLAS
runs in the calling thread, where one large product would wake its thread pool beside the network's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.arguments.argument_checks import refused
from mt3_runtime.audio import filter_bank as filterbank
from mt3_runtime.errors import OptionError
from mt3_runtime.schema import Between, read_fields

FRAMINGS = ("leading", "centred")
FLOOR_RULES = ("replace", "add")
FILTERS: Mapping[str, tuple[str, ...]] = {
    "triangles_in_mel": ("low_hz", "high_hz"),
    "triangles_in_hz": ("low_hz", "high_hz"),
    "none": (),
}
"""Kinds of filters, and the numbers that each of them needs."""
SCALINGS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "fixed": ("scale_low", "scale_high"),
    "segment": ("scale_offset",),
}
"""Kinds of scaling, and the numbers that each of them needs."""

_MAX_SIZE, _MAX_RATE = 1 << 14, 1 << 20
"""Bounds of the configured sizes and rate: they become allocations, and come from a file."""

CHUNK_FRAMES = 64
"""Frames worked on at once: the scratch stays in the L2 cache (twice as fast as 256), and the
largest band product, 64 x 82 x 16, below the 2**18 multiplications that OpenBLAS spreads over
threads."""


@dataclass(frozen=True)
class FeatureConfig:
    """Parameters of the spectrogram; the defaults are Magenta's ``mt3`` model.

    Numbers that the chosen kinds of filters and scaling do not use are None.

    Attributes:
        sample_rate: [Hz].
        frames: Rows of the result.
        hop: Samples between frames.
        fft_size: Length of window and FFT, in samples.
        bins: Columns of the result: filters, or frequencies from the first one above DC on.
        framing: "leading" or "centred"; see the module docstring, also for the other names.
        power: The magnitude is raised to it, 1 or 2.
        filters: "triangles_in_mel", "triangles_in_hz" or "none".
        low_hz: Lower edge of the first filter [Hz].
        high_hz: Upper edge of the last filter [Hz].
        floor: Keeps the logarithm finite.
        floor_rule: "replace" or "add".
        scaling: "none", "fixed" or "segment".
        scale_low: Value that "fixed" maps to 0; lower ones are clipped.
        scale_high: Value that "fixed" maps to 1; higher ones are clipped.
        scale_offset: "segment" divides by maximum - minimum + this.
    """

    sample_rate: int = 16000
    frames: int = 256
    hop: int = 128
    fft_size: int = 2048
    bins: int = 512
    framing: str = "leading"
    power: int = 1
    filters: str = "triangles_in_mel"
    low_hz: float | None = 20.0
    high_hz: float | None = 7600.0
    floor: Annotated[float, Between(1e-30, 1.0)] = 1e-5
    floor_rule: str = "replace"
    scaling: str = "none"
    scale_low: float | None = None
    scale_high: float | None = None
    scale_offset: Annotated[float | None, Between(1e-6, 1e6)] = None

    def __post_init__(self) -> None:
        for name in ("sample_rate", "frames", "hop", "fft_size", "bins", "power"):
            value = getattr(self, name)
            limit = {"sample_rate": _MAX_RATE, "power": 2}.get(name, _MAX_SIZE)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise OptionError(
                    f"{name} of features is {value!r}; expected a whole number from 1 to {limit}."
                )
        if self.fft_size % 2:
            raise OptionError(f"fft_size of features is {self.fft_size}; expected an even number.")
        for name, known in (
            ("framing", FRAMINGS),
            ("filters", FILTERS),
            ("floor_rule", FLOOR_RULES),
            ("scaling", SCALINGS),
        ):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name} of features is {getattr(self, name)!r}; this version knows "
                    f"{', '.join(known)}. Install a newer mt3-runtime or export the bundle again."
                )
        self._check_numbers()
        if self.filters == "none" and self.bins > self.fft_size // 2:
            raise OptionError(
                f"bins of features is {self.bins}; an FFT of {self.fft_size} samples has "
                f"{self.fft_size // 2} frequencies above DC."
            )

    def _check_numbers(self) -> None:
        """Checks that the numbers which are needed are there, finite and in order."""
        needed = {"floor", *FILTERS[self.filters], *SCALINGS[self.scaling]}
        for name in ("floor", "low_hz", "high_hz", "scale_low", "scale_high", "scale_offset"):
            value = getattr(self, name)
            if name not in needed:
                if value is not None:
                    raise OptionError(f"{name} of features is {value!r}; nothing uses it here.")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise OptionError(f"{name} of features is {value!r}; expected a number.")
            elif not math.isfinite(value):
                raise OptionError(f"{name} of features is {value!r}; expected a finite number.")
        low, high, top = self.low_hz, self.high_hz, self.sample_rate / 2
        if low is not None and high is not None and not 0.0 <= low <= high - 1.0 <= top - 1.0:
            raise OptionError(
                f"filter edges are {low} and {high} Hz; expected 0 <= low_hz < high_hz <= {top:g}, "
                "1 Hz or more apart."
            )
        if self.floor <= 0.0:
            raise OptionError(f"floor of features is {self.floor}; expected a positive number.")
        low, high = self.scale_low, self.scale_high
        if low is not None and high is not None and not np.float32(low) < np.float32(high):
            raise OptionError(f"features are scaled from {low}..{high}; expected low < high.")
        if self.scale_offset is not None and self.scale_offset <= 0.0:
            raise OptionError(f"scale_offset is {self.scale_offset}; expected a positive number.")

    @property
    def lengths(self) -> range:
        """Lengths of a segment, in samples, from which ``frames`` rows can be made.

        The longest one with centred frames has one row more, which is left out.
        """
        if self.framing == "leading":
            return range(1, self.frames * self.hop + 1)
        shortest = max((self.frames - 1) * self.hop, self.fft_size // 2 + 1)
        return range(shortest, self.frames * self.hop + 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureConfig:
        """Inverse of :meth:`to_dict`; unknown or missing keys raise `BundleError`."""
        return read_fields(cls, data, "features")

    @classmethod
    def mr_mt3(cls) -> FeatureConfig:
        """Models trained by gudgud96/MR-MT3: torchaudio's filters, -12..5 mapped to 0..1."""
        return cls(filters="triangles_in_hz", scaling="fixed", scale_low=-12.0, scale_high=5.0)

    @classmethod
    def yourmt3_mel(cls) -> FeatureConfig:
        """YMT3+: a mel power spectrum of 256 frames."""
        return cls(
            framing="centred",
            power=2,
            filters="triangles_in_hz",
            low_hz=50.0,
            high_hz=8000.0,
            floor_rule="add",
            scaling="segment",
            scale_offset=0.008,
        )

    @classmethod
    def yourmt3_linear(cls) -> FeatureConfig:
        """YPTF+ models: a linear magnitude spectrum of 110 frames and 1024 frequencies."""
        return cls(
            frames=110,
            hop=300,
            bins=1024,
            framing="centred",
            filters="none",
            low_hz=None,
            high_hz=None,
            floor_rule="add",
            scaling="segment",
            scale_offset=0.008,
        )

    @classmethod
    def mt3_infer(cls) -> FeatureConfig:
        """What mt3-infer 0.2.0's ``mt3_pytorch`` adapter feeds Magenta's weights with.

        No model was trained with it; it is here to measure what that costs.  The adapter's 257th
        row, always zero, is left out, and behind the end of a recording there is silence, not zero.
        """
        return cls(
            framing="centred",
            power=2,
            filters="triangles_in_hz",
            high_hz=8000.0,
            floor=1e-6,
            floor_rule="add",
        )


class FeatureExtractor:
    """Spectrogram of single segments.  Immutable after construction, hence thread-safe.

    Attributes:
        config: What it was built from.
    """

    def __init__(self, config: FeatureConfig | None = None) -> None:
        self.config = config or FeatureConfig()
        self._window = filterbank.hann_window(self.config.fft_size)
        matrix = filter_matrix(self.config)
        self._bands = [] if matrix is None else filterbank.split_bands(matrix)

    def checked(self, features: object) -> npt.NDArray[np.float32]:
        """Check that features can be those of segments: float32 [segments, frames, bins].

        Raises:
            OptionError: They have another type or shape, or hold NaN or infinity.
        """
        expected = (self.config.frames, self.config.bins)
        text = f"an array of numbers [segments, {expected[0]}, {expected[1]}], from preprocess()"
        try:
            array = np.asarray(features)
        except (TypeError, ValueError) as error:  # of unequal lengths, or an object's own
            raise refused("features", features, text) from error
        if array.dtype.kind not in "iuf" or array.ndim != 3:
            raise refused("features", features, text)
        if array.shape[1:] != expected:
            raise OptionError(
                f"features must have shape [segments, {expected[0]}, {expected[1]}], "
                f"got {list(array.shape)}; make them with preprocess()."
            )
        if not np.isfinite(array).all():
            raise OptionError("features hold NaN or infinity; make them with preprocess().")
        return array.astype(np.float32, copy=False)

    def __call__(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compute the features of one segment.

        Args:
            samples: float32 [n], mono at ``config.sample_rate``, n in ``config.lengths``, without
                padding other than what belongs to the segment.

        Returns:
            float32 [frames, bins]; with leading frames, rows from ceil(n / hop) on are exactly 0.0.

        Raises:
            OptionError: ``samples`` has another type, shape or length.
        """
        self._check(samples)
        features, _ = self._compute(samples, 1, 0)
        return features

    def with_spectra(
        self, samples: npt.NDArray[np.float32], *, every: int, used: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """As calling it, and returns the magnitudes of some frames beside the features.

        Args:
            samples: As of a call.
            every: Of so many frames the first one; a divisor of `CHUNK_FRAMES`.
            used: How many frequencies, from 0 Hz on.

        Returns:
            The features, and float32 [k, used].
        """
        self._check(samples)
        return self._compute(samples, every, used)

    def _check(self, samples: npt.NDArray[np.float32]) -> None:
        config = self.config
        if samples.dtype != np.float32 or samples.ndim != 1:
            raise OptionError(
                f"A segment is {samples.dtype} of shape {samples.shape}; expected float32 [n]."
            )
        lengths = config.lengths
        if len(samples) not in lengths:
            raise OptionError(
                f"A segment has {len(samples)} samples; expected {lengths.start} to "
                f"{lengths.stop - 1}."
            )

    def _compute(
        self, samples: npt.NDArray[np.float32], every: int, used: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        config = self.config
        frames = self._frames(samples)
        features = np.zeros((config.frames, config.bins), np.float32)
        kept = np.empty((-(-len(frames) // every), used), np.float32)
        for start in range(0, len(frames), CHUNK_FRAMES):
            stop = min(start + CHUNK_FRAMES, len(frames))
            spectrum = np.abs(np.fft.rfft(frames[start:stop] * self._window))
            if used:
                kept[start // every : -(-stop // every)] = spectrum[::every, :used]
            self._log_spectrum(spectrum, features[start:stop])
        self._scale(features[: len(frames)])
        return features, kept

    def _frames(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns a view [k, fft_size]; k is ``frames``, or less with leading frames."""
        hop, size = self.config.hop, self.config.fft_size
        if self.config.framing == "centred":
            padded = np.pad(samples, size // 2, mode="reflect")
        else:
            count = -(-len(samples) // hop)
            padded = np.zeros((count - 1) * hop + size, np.float32)
            padded[: len(samples)] = samples[: len(padded)]
        frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
        return frames[: self.config.frames]

    def _log_spectrum(
        self, spectrum: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
    ) -> None:
        """Fill ``out`` [k, bins] from magnitudes [k, fft_size / 2 + 1], which are overwritten."""
        config = self.config
        if config.power == 2:
            np.square(spectrum, out=spectrum)
        if config.filters == "none":
            out[...] = spectrum[:, 1 : config.bins + 1]
        for band in self._bands:
            np.matmul(spectrum[:, band.rows], band.weights, out=out[:, band.filters])
        floor = np.float32(config.floor)
        if config.floor_rule == "add":
            np.add(out, floor, out=out)
        else:
            np.copyto(out, floor, where=out <= 0.0)
        np.log(out, out=out)

    def _scale(self, rows: npt.NDArray[np.float32]) -> None:
        config = self.config
        if config.scaling == "fixed":
            low, high = np.float32(config.scale_low), np.float32(config.scale_high)
            np.clip(rows, low, high, out=rows)
            rows -= low
            rows /= high - low
        elif config.scaling == "segment":
            low, high = rows.min(), rows.max()
            rows -= low
            rows /= high - low + np.float32(config.scale_offset)


def filter_matrix(config: FeatureConfig) -> npt.NDArray[np.float32] | None:
    """Weights float32 [fft_size / 2 + 1, bins] of the filters, None where there are none."""
    if config.low_hz is None or config.high_hz is None:
        return None
    build = {
        "triangles_in_mel": filterbank.mel_triangles_in_mel,
        "triangles_in_hz": filterbank.mel_triangles_in_hz,
    }[config.filters]
    return build(
        sample_rate=config.sample_rate,
        fft_size=config.fft_size,
        bins=config.bins,
        low_hz=config.low_hz,
        high_hz=config.high_hz,
    )
