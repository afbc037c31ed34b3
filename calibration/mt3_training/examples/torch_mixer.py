"""`mt3_synthesis.mixer.render` in PyTorch: many windows at once, on the CPU or a GPU.

Contract: equal plans give equal audio, up to the rounding of float32 sums (on a GPU their order
changes from run to run, too).  Positions are whole numbers, so all samples read are the same.

Voices are sorted by length and worked on in rectangles of voices x samples: a gather, a little
arithmetic and one scatter-add each, with hardly any padding.  This module imports torch; import it
only where training really starts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mt3_synthesis.mixer import FRACTION_BITS, RELEASE_NEPERS, Palette, Voices
from mt3_training.examples.dataset import PITCHES, ROLLS

ELEMENTS = 1 << 24
"""Voices x samples worked on at a time: about 1 GB of scratch."""


class TorchMixer:
    """Adds up plans on a device.

    Args:
        palette: The sounds; they are copied to the device once, as int16.
        device: Where to work.
        elements: Voices x samples worked on at a time.
    """

    def __init__(
        self, palette: Palette, device: str | torch.device = "cpu", *, elements: int = ELEMENTS
    ) -> None:
        self._audio = torch.from_numpy(palette.audio).to(device)
        self._device = device
        self._elements = elements

    @torch.no_grad()
    def render(
        self, voices: Voices, rows: npt.NDArray[np.int64], *, windows: int, samples: int
    ) -> Tensor:
        """Add up the plans of several windows.

        Args:
            voices: Of all windows, see `Voices.join`.
            rows: int64 [n], the window of each voice, 0..windows - 1.
            windows: Number of windows.
            samples: Length of each window.

        Returns:
            float32 [windows, samples] on the device.
        """
        order = np.argsort(-voices.length, kind="stable")
        lengths = voices.length[order]
        columns = np.stack([*voices[:-1], rows])[:, order]
        whole = torch.from_numpy(columns).to(self._device)
        gains = torch.from_numpy(voices.gain[order]).to(self._device)
        mix = torch.zeros(windows * samples, device=self._device)
        start = 0
        while start < len(lengths):
            longest = int(lengths[start])
            stop = start + max(1, self._elements // longest)
            self._add(mix, whole[:, start:stop], gains[start:stop], longest, samples)
            start = stop
        return mix.view(windows, samples)

    def _add(self, mix: Tensor, whole: Tensor, gains: Tensor, longest: int, samples: int) -> None:
        """Add voices (whole [8, n], gains [n]), none longer than ``longest``."""
        shot, ratio, skip, gate, release, out, length, window = whole[:, :, None]
        step = torch.arange(longest, device=mix.device)[None]
        live = step < length
        step = torch.minimum(step, length - 1)
        time = skip + step
        position = time * ratio
        fraction = (position & ((1 << FRACTION_BITS) - 1)).float() * 2.0**-FRACTION_BITS
        at = shot + (position >> FRACTION_BITS)
        left = self._audio[at].float()
        heard = left + fraction * (self._audio[at + 1].float() - left)
        late = (time - gate).clamp_min(0).float() * (-RELEASE_NEPERS / release.clamp_min(1).float())
        heard *= gains[:, None] * live * torch.exp(late)
        target = (window * samples + out + step).flatten()
        mix.index_add_(0, target, heard.flatten())


@torch.no_grad()
def torch_rolls(spans: Tensor, *, windows: int, frames: int) -> Tensor:
    """`mt3_training.examples.dataset.dense_rolls` of a batch.

    Args:
        spans: int64 [m, 5], see `mt3_training.examples.dataset.Batch`, on any device.
        windows: Number of windows.
        frames: Their length.

    Returns:
        bool [windows, 4, frames, 128] on the same device.
    """
    window, roll, first, last, pitch = spans.T
    # +1 where something begins and -1 behind its end add up to how much there is.
    changes = torch.zeros(
        windows, len(ROLLS), frames + 1, PITCHES, dtype=torch.int16, device=spans.device
    )
    one = torch.ones_like(window, dtype=torch.int16)
    changes.index_put_((window, roll, first, pitch), one, accumulate=True)
    changes.index_put_((window, roll, last + 1, pitch), -one, accumulate=True)
    return changes[:, :, :-1].cumsum(dim=2) > 0
