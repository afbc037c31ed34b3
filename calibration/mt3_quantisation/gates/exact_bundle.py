"""The exact bundle that a precision recipe starts from: its graphs, and what it transcribes.

Contract: `Source.graph` gives a graph whose weights are plain fp32 parameters under their own
names, however the bundle stores them.  `Source.listen` gives features and exact tokens of excerpts,
once: every recipe and every judgement starts from the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_export.bundle_weights import parsed_graph
from mt3_quantisation.forms.step_graphs import plain
from mt3_quantisation.gates.material import Excerpt
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.manifest import Manifest, Role
from mt3_runtime.decoding.types import Sequence as Tokens
from mt3_runtime.errors import OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.notes.note import Note

if TYPE_CHECKING:
    from onnx import ModelProto

FloatArray = npt.NDArray[np.float32]


class Heard(NamedTuple):
    """An excerpt as a model has it.

    Attributes:
        excerpt: The recording.
        features: [segments, frames, bins].
        tokens: Of all channels of the first segment, then of the second, and so on.
        notes: What they mean; no filter was applied.
    """

    excerpt: Excerpt
    features: FloatArray
    tokens: tuple[Tokens, ...]
    notes: tuple[Note, ...]


class Source:
    """A bundle with exact arithmetic.

    Args:
        bundle: The bundle.
        threads: CPU threads; all usable cores by default.

    Raises:
        OptionError: Its arithmetic is not exact.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self.bundle, self.threads = bundle, threads
        self.manifest: Manifest = bundle.manifest
        if not self.manifest.precision.exact:
            raise OptionError(
                f"{bundle.path} is of precision {self.manifest.precision} already; start from the "
                "bundle that `mt3 export` wrote."
            )
        self._model: Model | None = None
        self._heard: dict[tuple[str, int], Heard] = {}

    def graph(self, role: Role, profile: str) -> ModelProto:
        """A graph of the bundle with plain fp32 weights; the caller may change it.

        Raises:
            BundleError: The bundle lacks it, or it is damaged.
        """
        return plain(parsed_graph(self.bundle, self.bundle.graph(role, profile)))

    def listen(self, excerpts: Sequence[Excerpt]) -> list[Heard]:
        """What the exact model hears, in the order of the excerpts; each is done once."""
        fresh = [e for e in excerpts if (e.name, e.take) not in self._heard]
        if fresh:
            if self._model is None:
                self._model = load_model(self.bundle.path, device="cpu", threads=self.threads)
            features = [self._model.preprocess(e.audio, e.sample_rate) for e in fresh]
            found = transcribed(self._model, fresh, features)
            self._heard |= {(h.excerpt.name, h.excerpt.take): h for h in found}
        return [self._heard[excerpt.name, excerpt.take] for excerpt in excerpts]


class Changed(Source):
    """A source some of whose graphs are changed already, for a recipe that builds on another's.

    Args:
        source: The exact one, which goes on to listen.
        graphs: What `graph` gives instead, by role and profile.
    """

    def __init__(self, source: Source, graphs: Mapping[tuple[Role, str], ModelProto]) -> None:
        super().__init__(source.bundle, threads=source.threads)
        self._exact, self._graphs = source, graphs

    def graph(self, role: Role, profile: str) -> ModelProto:
        if (role, profile) not in self._graphs:
            return super().graph(role, profile)
        copy = type(found := self._graphs[role, profile])()
        copy.CopyFrom(found)
        return copy

    def listen(self, excerpts: Sequence[Excerpt]) -> list[Heard]:
        return self._exact.listen(excerpts)


def transcribed(
    model: Model, excerpts: Sequence[Excerpt], features: Sequence[FloatArray]
) -> list[Heard]:
    """What a model hears in excerpts whose features are given.

    Segments of different recordings go through one batch, unless they need their predecessors.
    """
    channels = model.info.model.channels
    if model.info.model.memory:
        tokens = [model.forward(each) for each in features]
    else:
        ends = np.cumsum([channels * len(each) for each in features]).tolist()
        whole = model.forward(np.concatenate(features))
        tokens = [
            whole[end - channels * len(each) : end]
            for each, end in zip(features, ends, strict=True)
        ]
    return [
        Heard(excerpt, each, tuple(said), model.assemble(said))
        for excerpt, each, said in zip(excerpts, features, tokens, strict=True)
    ]
