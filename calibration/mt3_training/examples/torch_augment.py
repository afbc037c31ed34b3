"""`mt3_synthesis.augment.Augmenter` in PyTorch: a batch of windows at once.

Contract: equal colours give equal audio, up to the rounding of float32 transforms.  This module
imports torch; import it only where training really starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt3_synthesis.augment import (
    DECAY_NEPERS,
    NOISES,
    PREROLL,
    QUIET_PEAK,
    Colour,
    fft_length,
    tables,
)
from mt3_synthesis.rendering import SAMPLE_RATE


class TorchAugmenter:
    """Does to windows what colours say.

    Args:
        samples: Length of the windows, without preroll.
        device: Where to work.
    """

    def __init__(self, samples: int, device: str | torch.device = "cpu") -> None:
        self._samples = samples
        self._length = fft_length(samples)
        self._device = device
        self._tables = type(tables())(*(torch.from_numpy(t).to(device) for t in tables()))
        hertz = np.maximum(np.fft.rfftfreq(self._length, 1.0 / SAMPLE_RATE), 20.0)
        self._hertz = torch.from_numpy(hertz.astype(np.float32)).to(device)
        self._octaves = torch.log2(self._hertz / 1000.0)
        self._time = torch.arange(PREROLL, device=device) / SAMPLE_RATE
        self._at = torch.arange(samples, device=device)

    @torch.no_grad()
    def __call__(self, mix: Tensor, colours: Sequence[Colour]) -> Tensor:
        """Colour a batch.

        Args:
            mix: float32 [n, `PREROLL` + samples] on the device.
            colours: What to do with each, n of them.

        Returns:
            float32 [n, samples], within full scale.
        """
        values = torch.tensor(np.array(colours, np.float32), device=self._device)
        colour: Any = Colour(*values.T[:, :, None])  # of columns [n, 1] instead of numbers
        spectrum = torch.fft.rfft(mix, self._length) * self._gain(colour)
        spectrum *= torch.fft.rfft(self._response(colour), self._length)
        heard = torch.fft.irfft(spectrum, self._length)[:, PREROLL : PREROLL + self._samples]
        heard = heard / heard.abs().amax(dim=1, keepdim=True).clamp_min(QUIET_PEAK)
        drive = colour.drive.clamp_min(1e-3)
        driven = torch.tanh(drive * heard) / torch.tanh(drive)
        heard = torch.where(colour.drive > 0, driven, heard)
        at = (colour.offset.long() + self._at) % NOISES
        noise = colour.pink * self._tables.pink[at] + (1 - colour.pink) * self._tables.white[at]
        heard = _amplitude(colour.level) * heard + _amplitude(colour.noise) * noise
        return heard.clamp(-1.0, 1.0)

    def _gain(self, colour: Any) -> Tensor:
        decibels = colour.tilt * self._octaves.clamp(-4.0, 3.0)
        for hertz, gain in ((colour.hz_1, colour.db_1), (colour.hz_2, colour.db_2)):
            distance = (self._octaves - torch.log2(hertz / 1000.0)) / colour.octaves
            decibels = decibels + gain * torch.exp(-(distance**2))
        gain = _amplitude(decibels)
        gain = gain / (1.0 + (colour.low_cut / self._hertz) ** 2)
        return gain / (1.0 + (self._hertz / colour.high_cut) ** 4)

    def _response(self, colour: Any) -> Tensor:
        room = colour.room[:, 0].long()
        low = self._tables.low[room] * torch.exp(self._time * (-DECAY_NEPERS / colour.decay_low))
        high = self._tables.high[room] * torch.exp(self._time * (-DECAY_NEPERS / colour.decay_high))
        tail = colour.tail * torch.sqrt(2.0 * DECAY_NEPERS / colour.decay_low)
        response = colour.early * self._tables.early[room] + tail * (low + high)
        response[:, 0] += 1.0
        return response


def _amplitude(decibels: Tensor) -> Tensor:
    return torch.exp(decibels * (math.log(10.0) / 20.0))
