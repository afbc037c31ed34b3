"""Initial weights of the network that encode time and pitch.

Contract: `align_` changes freshly drawn weights of a `Network` and nothing about what it computes,
so the exported network is plain MT3.  What a small network takes longest to find by chance, and
learns little without, is there from the first step on, and free to change:

* *Encoder positions stay readable*: the spectrogram enters through columns in which the sinusoids
  hardly vary within a segment, and all sublayers begin quietly.
* *Pitches*: it enters as what `mt3_training.networks.templates` makes of it.
* *Beginnings*: heads of the first encoder layers look a fixed number of frames back or ahead, and
  some of them take off what sounded there before.
* *The clock*: the embedding of a time shift is the sinusoid of its frame, in columns of its own; a
  head of the first decoder layer looks up the last shift and passes its code on.
* *Where to listen*: cross-attention heads compare that code with the encoder's positions, so they
  look at the present, or a little ahead of it.
* *What was heard*: the first guided head passes pitches on to the output, in which near times are
  alike.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from mt3_runtime.audio.log_mel import FeatureConfig
from mt3_runtime.notes.vocabulary import EventKind, Vocabulary
from mt3_training.networks.templates import band_templates, pitch_templates

if TYPE_CHECKING:
    import numpy.typing as npt

    from mt3_training.networks.network import Attention, DecoderLayer, EncoderLayer, Network

#: Frames per step of the vocabulary: 10 ms at hops of 8 ms.
FRAMES_PER_STEP = 1.25

#: Base of MT3's sinusoids.
POSITION_BASE = 10000.0

#: MIDI pitches and bands that have a column of the encoder's stream each.
PITCHES, BANDS = range(21, 109), 24

#: Scale of what enters there; log-mel values differ by a few units.
INPUT_SCALE = 0.5

#: Frames at which the heads of the first encoder layers look.
NEIGHBOURS = ((-6, -6, -3, 8), (-16, -5, 5, 16))

#: How much of what sounded before is taken off: pitches may go on, noises are only their beginning.
PITCH_CONTRAST, BAND_CONTRAST = 0.5, 0.8

#: Frames at which the cross-attention heads look, from the present.
LISTEN = (8, 0, 4, 16)

#: Pitches that the guided head passes on, as many as it has columns.
FIRST_VOICED = 36

#: Gain of all sublayers, of other than the built-in attention, and of what the guided head says.
QUIET, BLURRED, VOICE = 0.25, 0.5, 2.0

#: Sharpness of the built-in attention.
SHARP = 0.7

#: Columns of slow cosines that are left as they are: a constant to ask with.
CONSTANTS = 16

#: What a head that looks up the last shift gives to every shift, before `SHARP`.
MARKED = 4.0


def align_(network: Network, vocabulary: Vocabulary) -> None:
    """Builds all that into freshly drawn weights, as far as the network has heads for it.

    Args:
        network: Fresh.  One without columns for all pitches and bands (`d_model` below 224) is left
            as it is.
        vocabulary: Its tokens.
    """
    if network.shape.d_model < 2 * (len(PITCHES) + BANDS):
        return
    with torch.no_grad():
        _align(network, vocabulary, _Columns(network.shape.d_model, network.shape.head_dim))


def _align(network: Network, vocabulary: Vocabulary, plan: _Columns) -> None:
    encoder = [cast("EncoderLayer", module) for module in _layers(network.encoder)]
    decoder = [cast("DecoderLayer", module) for module in _layers(network.decoder)]
    for name, parameter in network.named_parameters():
        if name.endswith(("out.kernel", "wo.kernel")):
            parameter.mul_(QUIET)
    _listen(network, encoder, plan)
    mark = _time(network, vocabulary, plan)
    _look_up(decoder[0].self_attention, mark, plan)
    for layer in decoder:
        cross = layer.encoder_decoder_attention
        for head, frames in enumerate(LISTEN[: cross.heads]):
            _compare(cross, head, plan.turned(plan.clock, frames), plan.picked(plan.positions))
    _speak(network, decoder[len(decoder) // 2].encoder_decoder_attention, vocabulary, plan)


class _Columns:
    """Which columns of the residual streams mean what at the start.

    Attributes:
        places: Where sinusoids vary within a segment.
        positions: Those that codes of times are made of, sines first.
        features: All others: what is heard, in the encoder.
        clock: The code of the present, in the decoder; nothing else may be there.
        free: Other columns of the decoder.
        constant: Of these, slow cosines.
    """

    def __init__(self, d_model: int, head_dim: int) -> None:
        self.d_model, self.head_dim = d_model, head_dim
        half, pairs = d_model // 2, head_dim // 2
        fast = half // 2
        chosen = np.linspace(fast * 0.05, fast - 1, pairs).round().astype(int)
        self.frequencies = np.exp(chosen * (-math.log(POSITION_BASE) / (half - 1)))
        self.places = [*range(fast), *range(half, half + fast)]
        self.positions = [*chosen.tolist(), *(half + chosen).tolist()]
        self.features = [*range(fast, half), *range(half + fast, d_model)]
        self.clock = list(range(fast, half))[:head_dim]  # slow sines: nearly zero
        others = list(range(half + fast, d_model))  # slow cosines: nearly one
        self.free, self.constant = others[:-CONSTANTS], others[-CONSTANTS:]

    def codes(self, frames: npt.NDArray[np.floating[Any]]) -> Tensor:
        """Codes of times [n] in frames: float32 [n, head_dim]."""
        angles = frames[:, np.newaxis] * self.frequencies
        both = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return torch.from_numpy(both.astype(np.float32))

    def picked(self, columns: Sequence[int]) -> Tensor:
        """A kernel [d_model, head_dim] that reads a code from those columns."""
        kernel = torch.zeros(self.d_model, self.head_dim)
        kernel[list(columns), torch.arange(self.head_dim)] = 1.0
        return kernel

    def turned(self, columns: Sequence[int], frames: float) -> Tensor:
        """The same, but for the code of so many frames later."""
        pairs = self.head_dim // 2
        angles = torch.from_numpy(self.frequencies * frames).float()
        sines, cosines, index = list(columns[:pairs]), list(columns[pairs:]), torch.arange(pairs)
        kernel = torch.zeros(self.d_model, self.head_dim)
        # sin(a + b) = sin a cos b + cos a sin b and cos(a + b) = cos a cos b - sin a sin b
        kernel[sines, index], kernel[cosines, index] = angles.cos(), angles.sin()
        kernel[sines, pairs + index], kernel[cosines, pairs + index] = -angles.sin(), angles.cos()
        return kernel


def _layers(stack: torch.nn.Module) -> list[torch.nn.Module]:
    return [stack.get_submodule(name) for name in cast("list[str]", stack.layers)]


def _compare(attention: Attention, head: int, query: Tensor, key: Tensor) -> None:
    """Makes a head compare what two kernels [d_model, head_dim] read."""
    columns = _of_head(head, query.shape[1])
    for dense, kernel in ((attention.query, query), (attention.key, key)):
        dense.kernel[:, columns] *= BLURRED
        dense.kernel[:, columns] += SHARP * kernel


def _of_head(head: int, width: int) -> Tensor:
    return head * width + torch.arange(width)


def _carry(attention: Attention, head: int, source: Sequence[int], kernel: Tensor) -> None:
    """Makes a head read values from some columns, and write them with a kernel [n, d_model]."""
    width = attention.query.kernel.shape[1] // attention.heads
    inner = _of_head(head, width)[: len(source)]
    attention.value.kernel[:, inner] = 0.0
    attention.value.kernel[list(source), inner] = 1.0
    attention.out.kernel[inner] = kernel


def _listen(network: Network, layers: list[EncoderLayer], plan: _Columns) -> None:
    """The encoder's side: what enters where, and what the first layers do with it."""
    kernel = network.encoder.continuous_inputs_projection.kernel
    kernel[:, plan.places] = 0.0
    kernel *= math.sqrt(plan.d_model / len(plan.features))
    config = FeatureConfig(bins=len(kernel))
    pitches, bands = plan.features[: len(PITCHES)], plan.features[len(PITCHES) :][:BANDS]
    templates = pitch_templates(config, PITCHES.start, len(PITCHES))
    kernel[:, pitches] = INPUT_SCALE * torch.from_numpy(templates)
    kernel[:, bands] = INPUT_SCALE * torch.from_numpy(band_templates(config, BANDS))
    for layer, offsets in zip(layers, NEIGHBOURS, strict=False):
        for head, frames in enumerate(offsets[: layer.attention.heads]):
            query = plan.turned(plan.positions, frames)
            _compare(layer.attention, head, query, plan.picked(plan.positions))
    middle = len(pitches) // 2
    parts = ((pitches[:middle], PITCH_CONTRAST), (pitches[middle:], PITCH_CONTRAST))
    for head, (part, share) in enumerate((*parts, (bands, BAND_CONTRAST))):
        if head < layers[0].attention.heads:
            taken = torch.zeros(len(part), plan.d_model)
            taken[torch.arange(len(part)), part] = -share
            _carry(layers[0].attention, head, part, taken)


def _time(network: Network, vocabulary: Vocabulary, plan: _Columns) -> Tensor:
    """Codes of times in the embeddings of shifts and in their output columns.

    Returns:
        What marks a shift in the free columns.
    """
    embedding = network.decoder.token_embedder.embedding
    embedding[:, [*plan.places, *plan.constant]] *= 0.1
    embedding[:, plan.clock] = 0.0
    mark = torch.randn(len(plan.free))
    shifts = list(vocabulary.id_range(EventKind.SHIFT))
    codes = plan.codes(np.arange(len(shifts)) * FRAMES_PER_STEP)
    output = network.decoder.logits_dense.kernel
    output[torch.tensor(plan.clock)[:, None], torch.tensor(shifts)] = codes.T / math.sqrt(
        plan.d_model
    )
    ids = torch.tensor([*shifts, vocabulary.pad])[:, None]  # the start token says time 0
    embedding[ids[:, 0]] *= 0.3
    embedding[ids, torch.tensor(plan.free)] += mark
    embedding[ids, torch.tensor(plan.clock)] = torch.cat([codes, codes[:1]])
    return mark


def _look_up(attention: Attention, mark: Tensor, plan: _Columns) -> None:
    """A head that looks up the last shift and passes its code on."""
    query, key = plan.turned(plan.positions, 0.0), plan.picked(plan.positions)
    query[:, 0] = key[:, 0] = 0.0
    query[plan.constant, 0] = MARKED / len(plan.constant)
    key[plan.free, 0] = MARKED * mark / mark.square().sum()
    _compare(attention, 0, query, key)
    _carry(attention, 0, plan.clock, plan.picked(plan.clock).T)


def _speak(network: Network, attention: Attention, vocabulary: Vocabulary, plan: _Columns) -> None:
    """The way from the pitches that the first guided head hears to their tokens."""
    first = FIRST_VOICED - PITCHES.start
    heard = plan.features[first : min(first + plan.head_dim, len(PITCHES))]
    voice = torch.randn(len(heard), plan.d_model) / math.sqrt(plan.d_model)
    _carry(attention, 0, heard, VOICE * voice)
    ids = list(vocabulary.id_range(EventKind.PITCH))[FIRST_VOICED:][: len(heard)]
    network.decoder.logits_dense.kernel[:, ids] = voice.T
