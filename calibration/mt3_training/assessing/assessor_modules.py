"""The published assessing networks as PyTorch modules, for training and as the graphs' reference.

Contract: names of parameters are those that `mt3_export.assessors.network_folder` reads, and
`forward` computes what the exported graphs compute, row by row: a batch of rows of different
lengths (`mask`) gives each what it gets alone.  The published networks have no masks; with
``fill`` set, notes that were filled up are read as notes, as they do.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from mt3_export.assessors.network_folder import TOKEN_FIELDS, NetworkShape
from mt3_runtime.bundles.assessor_networks import AssessorNetwork

DROPOUT, AGGREGATOR_DROPOUT = 0.1, 0.2
"""As published."""


class Inside(NamedTuple):
    """What a network makes of a batch.

    Attributes:
        scores: [rows, k], 0 to 100.
        log_variance: [k].
        ordinal: Logits [rows, classes - 1], or None.
        pooled: [rows, W].
        gates: [rows, n, W], or None.
        attention: Weights of both ways of cross-attention, or None.
        embeddings: Of each modality that is there, [rows, W] of length one.
        steps_attention: [rows, steps].
    """

    scores: Tensor
    log_variance: Tensor
    ordinal: Tensor | None
    pooled: Tensor
    gates: Tensor | None
    attention: tuple[Tensor, Tensor] | None
    embeddings: dict[str, Tensor]
    steps_attention: Tensor


class MidiEncoder(nn.Module):
    """Tokens [rows, n, 8] to vectors of notes [rows, n, M]."""

    def __init__(self, shape: NetworkShape, most: int) -> None:
        super().__init__()
        width = shape.midi_width
        for field, values, share in TOKEN_FIELDS:
            self.add_module(f"{field}_embed", nn.Embedding(values, width // share))
        self.embed_projection = nn.Linear(width, width)
        self.positional_encoding = nn.Parameter(torch.randn(1, most, width))
        layer = nn.TransformerEncoderLayer(
            width, shape.midi_heads, 4 * width, DROPOUT, "gelu", batch_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, shape.midi_layers, enable_nested_tensor=False
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encodes; ``mask`` [rows, n] is true where there is a note."""
        fields = [
            self.get_submodule(f"{field}_embed")(tokens[..., index])
            for index, (field, _, _) in enumerate(TOKEN_FIELDS)
        ]
        hidden = self.embed_projection(torch.cat(fields, -1))
        hidden = hidden + self.positional_encoding[:, : tokens.shape[1]]
        found: Tensor = self.layer_norm(
            self.transformer(hidden, src_key_padding_mask=None if mask is None else ~mask)
        )
        return found


class Projection(nn.Module):
    """One modality into the shared space."""

    def __init__(self, width: int, shared: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(width, shared),
            nn.LayerNorm(shared),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(shared, shared),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., W]."""
        found: Tensor = self.projection(x)
        return found


class Fusion(nn.Module):
    """All five ways of joining, one of which has its modules."""

    def __init__(self, spec: AssessorNetwork, shape: NetworkShape) -> None:
        super().__init__()
        width, self.kind = shape.width, spec.fusion
        if self.kind == "gated":
            self.audio_transform, self.midi_transform = _block(width, width), _block(width, width)
            self.gate = nn.Linear(2 * width, width)
        if self.kind == "cross":
            for side, name in (("audio", "audio_to_midi_attn"), ("midi", "midi_to_audio_attn")):
                attention = nn.MultiheadAttention(
                    width, shape.cross_heads, DROPOUT, batch_first=True
                )
                self.add_module(name, attention)
                self.add_module(f"{side}_norm1", nn.LayerNorm(width))
                self.add_module(f"{side}_ffn", _feed_forward(width))
                self.add_module(f"{side}_norm2", nn.LayerNorm(width))
        else:
            self.output = _block(2 * width if self.kind == "concat" else width, width)

    def forward(
        self, sides: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """What is fused [rows, steps, F], gates, attention weights."""
        if self.kind == "gated":
            audio, midi = sides["audio"], sides["midi"]
            gates = torch.sigmoid(self.gate(torch.cat([audio, midi], -1)))
            heard = functional.gelu(self.audio_transform(audio))
            read = functional.gelu(self.midi_transform(midi))
            return self.output(gates * heard + (1 - gates) * read), gates, None
        if self.kind == "concat":
            both = torch.cat([sides["audio"], sides["midi"]], -1)
            return torch.relu(self.output(both)), None, None
        if self.kind == "cross":
            return self._crossed(sides, masks)
        (only,) = sides.values()
        return functional.gelu(self.output(only)), None, None

    def _crossed(
        self, sides: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> tuple[Tensor, None, tuple[Tensor, Tensor]]:
        results, weights = {}, []
        for side, other in (("audio", "midi"), ("midi", "audio")):
            attention = self.get_submodule(f"{side}_to_{other}_attn")
            ignored = None if other not in masks else ~masks[other]
            update, weight = attention(
                sides[side], sides[other], sides[other], key_padding_mask=ignored
            )
            hidden = self.get_submodule(f"{side}_norm1")(sides[side] + update)
            update = self.get_submodule(f"{side}_ffn")(hidden)
            results[side] = self.get_submodule(f"{side}_norm2")(hidden + update)
            weights.append(weight)
        stretched = _stretched(results["midi"], results["audio"], masks)
        return torch.cat([results["audio"], stretched], -1), None, (weights[0], weights[1])


class Aggregator(nn.Module):
    """Two-way LSTM layers and the attention of one query: [rows, steps, F] to [rows, W]."""

    def __init__(self, shape: NetworkShape, read: int) -> None:
        super().__init__()
        width = 2 * shape.lstm_width
        self.lstm = nn.LSTM(
            read,
            shape.lstm_width,
            shape.lstm_layers,
            dropout=AGGREGATOR_DROPOUT if shape.lstm_layers > 1 else 0.0,
            batch_first=True,
            bidirectional=True,
        )
        self.attention = nn.MultiheadAttention(
            width, shape.pool_heads, AGGREGATOR_DROPOUT, batch_first=True
        )
        self.attention_query = nn.Parameter(torch.randn(1, 1, width))
        self.layer_norm = nn.LayerNorm(width)
        self.projection = nn.Sequential(
            nn.Linear(width, shape.width), nn.ReLU(), nn.Dropout(AGGREGATOR_DROPOUT)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pooled, and the weights of the steps [rows, steps]."""
        if mask is None:
            hidden, _ = self.lstm(x)
        else:
            lengths = mask.sum(1).cpu()
            packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            hidden, _ = rnn.pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        query = self.attention_query.expand(len(x), -1, -1)
        ignored = None if mask is None else ~mask
        mixed, weights = self.attention(query, hidden, hidden, key_padding_mask=ignored)
        return self.projection(self.layer_norm(mixed[:, 0])), weights[:, 0]


class Head(nn.Module):
    """Scores, their learned uncertainty, and the ordinal output."""

    def __init__(self, spec: AssessorNetwork, shape: NetworkShape) -> None:
        super().__init__()
        first, second, each = shape.head_widths
        self.shared_extractor = nn.Sequential(
            nn.Linear(shape.width, first),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
        )
        self.names = spec.dimensions
        self.task_heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(second, each), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(each, 1)
                )
                for name in spec.dimensions
            }
        )
        self.log_vars = nn.Parameter(torch.zeros(len(spec.dimensions)))
        self.ordinal = Ordinal(shape.width, spec.ordinal_classes) if spec.ordinal_classes else None

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores [rows, k] from 0 to 100, and logits of the ordinal output."""
        shared = self.shared_extractor(pooled)
        scores = torch.cat([self.task_heads[name](shared) for name in self.names], -1)
        return 100.0 * torch.sigmoid(scores), None if self.ordinal is None else self.ordinal(pooled)


class Ordinal(nn.Module):
    """CORAL: one weight vector, a bias for each threshold."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.bias = nn.Parameter(torch.linspace(1.0, -1.0, classes - 1))

    def forward(self, x: Tensor) -> Tensor:
        """[rows, W] to [rows, classes - 1]."""
        return x @ self.weight.T + self.bias


class AssessorModule(nn.Module):
    """A whole network but for the audio encoder, whose frames it is given."""

    def __init__(self, spec: AssessorNetwork, shape: NetworkShape) -> None:
        super().__init__()
        self.spec, self.shape = spec, shape
        if spec.reads:
            self.midi_encoder = MidiEncoder(shape, spec.max_notes)
        self.projection = nn.ModuleDict()
        for side, width in (("audio", shape.audio_width), ("midi", shape.midi_width)):
            if spec.fusion in (side, "gated", "concat", "cross"):
                self.projection[f"{side}_proj"] = Projection(width, shape.width)
        self.fusion = Fusion(spec, shape)
        self.aggregator = Aggregator(shape, shape.fused(spec.fusion))
        self.mtl_head = Head(spec, shape)

    def forward(
        self,
        *,
        frames: Tensor | None = None,
        tokens: Tensor | None = None,
        spans: Tensor | None = None,
        frame_mask: Tensor | None = None,
        note_mask: Tensor | None = None,
        kept: Mapping[str, Tensor] | None = None,
    ) -> Inside:
        """Runs a batch.

        Args:
            frames: [rows, t, A] of the audio encoder.
            tokens: int64 [rows, n, 8].
            spans: int64 [rows, n, 2], where notes are paired with their own frames.
            frame_mask: True where there is a frame [rows, t]; all if None.
            note_mask: True where there is a note [rows, n]; all if None.
            kept: Modality -> rows that keep it, bool [rows]; of the others it is zero.
        """
        sides: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        if frames is not None and self.spec.hears:
            if self.spec.alignment == "note" and spans is not None:
                frames, frame_mask = frames_of_notes(frames, spans), note_mask
            sides["audio"] = self.projection["audio_proj"](frames)
            if frame_mask is not None:
                masks["audio"] = frame_mask
        if tokens is not None and self.spec.reads:
            notes = self.midi_encoder(tokens, note_mask)
            sides["midi"] = self.projection["midi_proj"](notes)
            if note_mask is not None:
                masks["midi"] = note_mask
        embeddings = {side: _embedding(x, masks.get(side)) for side, x in sides.items()}
        if kept is not None:
            sides = {s: x * kept[s][:, None, None].to(x.dtype) for s, x in sides.items()}
        if self.spec.alignment == "frame_index":
            shorter = min(x.shape[1] for x in sides.values())
            sides = {side: x[:, :shorter] for side, x in sides.items()}
            masks = {side: mask[:, :shorter] for side, mask in masks.items()}
        fused, gates, attention = self.fusion(sides, masks)
        pooled, weights = self.aggregator(fused, self._step_mask(masks))
        scores, ordinal = self.mtl_head(pooled)
        found = self.mtl_head.log_vars
        return Inside(scores, found, ordinal, pooled, gates, attention, embeddings, weights)

    def _step_mask(self, masks: dict[str, Tensor]) -> Tensor | None:
        """Where there is a step: a frame in cross-attention, else what all modalities have."""
        if self.spec.fusion == "cross":
            return masks.get("audio")
        found = None
        for mask in masks.values():
            found = mask if found is None else found & mask
        return found


def frames_of_notes(frames: Tensor, spans: Tensor) -> Tensor:
    """The mean [rows, n, A] of the frames of each note."""
    at = torch.arange(frames.shape[1], device=frames.device)
    inside = ((at >= spans[..., :1]) & (at < spans[..., 1:])).to(frames.dtype)
    return (inside / inside.sum(-1, keepdim=True).clamp(min=1.0)) @ frames


def _block(read: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(read, width), nn.LayerNorm(width))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 4 * width),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(4 * width, width),
        nn.Dropout(DROPOUT),
    )


def _embedding(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return functional.normalize(x.mean(1), dim=-1)
    there = mask[..., None].to(x.dtype)
    return functional.normalize((x * there).sum(1) / there.sum(1).clamp(min=1.0), dim=-1)


def _stretched(x: Tensor, like: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """Notes stretched to the frames, each row by its own lengths."""
    if not masks:
        return _interpolated(x, like.shape[1])
    rows = []
    for row in range(len(x)):
        notes, frames = (
            int(masks[side][row].sum()) if side in masks else whole.shape[1]
            for side, whole in (("midi", x), ("audio", like))
        )
        found = _interpolated(x[row : row + 1, :notes], frames)
        rows.append(functional.pad(found, (0, 0, 0, like.shape[1] - frames)))
    return torch.cat(rows)


def _interpolated(x: Tensor, length: int) -> Tensor:
    turned = functional.interpolate(x.transpose(1, 2), size=length, mode="linear")
    return turned.transpose(1, 2)
