"""Runs the graph of a tagger or genre classifier on the CPU: windows in, scores out.

Contract: logits leave the graph; `share` and `probability` are made of them here, by name.  Threads
may share a `Classifier`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_analysis.front_ends.feature_makers import features_of
from mt3_analysis.networks.windows import Window, cut_windows
from mt3_runtime.backends.ort_common import check_threads, import_onnxruntime
from mt3_runtime.backends.ort_session import open_session, reporting
from mt3_runtime.bundles.classifier import (
    Activation,
    ClassifierBundle,
    KaldiConfig,
    WaveConfig,
)
from mt3_runtime.bundles.weights_in_place import FOLDER
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.errors import BundleError

Floats = npt.NDArray[np.float32]

#: Numbers in the features of windows that are run at once: 16 windows of YAMNet, one of AST.
_MOST_FEATURES = 1 << 19
_MOST_ROWS = 16


@dataclass(frozen=True, eq=False)
class Heard:
    """What a network says of a window.

    Attributes:
        start: [s] from the beginning of the recording.
        end: [s].
        logits: float32 [labels]; None of a silent window, which is not run.
    """

    start: float
    end: float
    logits: Floats | None


class Classifier:
    """A loaded bundle.

    Attributes:
        bundle: Where it is from.
        manifest: What it says of itself.
    """

    def __init__(
        self, bundle: ClassifierBundle, *, profile: str | None = None, threads: int | None = None
    ) -> None:
        """Checks and loads the graph.

        Args:
            bundle: The model.
            profile: Graph profile; ``cpu`` where the bundle has it, else its first one.
            threads: All usable cores by default.

        Raises:
            BundleError: The graph is missing, damaged or refused by ONNX Runtime.
            MissingDependencyError: ONNX Runtime is not installed.
            OptionError: ``threads`` is no number from 1 to 1024.
        """
        check_threads(threads)
        self.bundle, self.manifest = bundle, bundle.manifest
        profiles = [graph.profile for graph in self.manifest.graphs]
        usual = "cpu" if "cpu" in profiles else profiles[0]
        graph = bundle.graph(profile or usual)
        runtime = import_onnxruntime()
        placed = bundle.in_place(graph)
        entries = {} if placed is None else {FOLDER: placed.folder}
        source = bundle.verified(graph) if placed is None else placed.model
        with reporting(
            f"ONNX Runtime {runtime.__version__} cannot load {graph.file} of {bundle.path}",
            "Export the model again, or update ONNX Runtime.",
        ):
            count = threads or usable_cores()
            # A plan for 30 s of samples takes 990 MiB, where allocating as it goes takes 600 and is
            # as fast.
            self._session: Any = open_session(
                runtime, source, threads=count, entries=entries, memory_plan=False
            )
            self._check_ports(graph.file)
        bundle.check_unchanged(graph)

    @property
    def sample_rate(self) -> int:
        """What `hear` wants [Hz]."""
        return self.manifest.front_end.chosen.sample_rate

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the logits, in order."""
        return self.manifest.labels

    def hear(self, blocks: Iterable[Floats]) -> Iterator[Heard]:
        """Runs a recording, window by window; memory does not depend on its length.

        Args:
            blocks: Mono float32 samples at `sample_rate`.

        Raises:
            BundleError: ONNX Runtime failed.
        """
        windows = cut_windows(blocks, self.manifest.window)
        while rows := list(islice(windows, self._rows)):
            yield from self._run(rows)

    @property
    def _rows(self) -> int:
        """Windows that are run at once; of waves, whose last one is shorter, one."""
        config = self.manifest.front_end.chosen
        if isinstance(config, WaveConfig):
            return 1
        bins = config.bins if isinstance(config, KaldiConfig) else config.fft // 2 + 1
        return max(1, min(_MOST_ROWS, _MOST_FEATURES // (config.frames * bins)))

    def logits(self, samples: Floats) -> Floats:
        """Logits [labels] of one window of samples [n], however long.

        Raises:
            BundleError: ONNX Runtime failed.
        """
        features = features_of(samples, self.manifest.front_end)
        found: Floats = self._logits(features[np.newaxis])[0]
        return found

    def scores(self, logits: Floats, activation: Activation | None = None) -> Floats:
        """Scores 0..1 of logits [..., labels].

        Args:
            logits: What the graph gave.
            activation: ``share`` (softmax) or ``probability`` (sigmoid); the bundle's own if None.
        """
        if (activation or self.manifest.activation) == "share":
            return share(logits)
        found, steps = probability(logits), self.manifest.score_steps
        if steps:
            found = (np.minimum(np.rint(found * steps), steps - 1) / steps).astype(np.float32)
        return found

    def _run(self, windows: list[Window]) -> Iterator[Heard]:
        loud = [window for window in windows if not window.silent]
        front_end, rate = self.manifest.front_end, self.sample_rate
        found: dict[int, Floats] = {}
        if loud:
            features = np.stack([features_of(window.samples, front_end) for window in loud])
            rows = self._logits(features)
            found = {window.start: row for window, row in zip(loud, rows, strict=True)}
        for window in windows:
            end = (window.start + len(window.samples)) / rate
            yield Heard(window.start / rate, end, found.get(window.start))

    def _logits(self, features: Floats) -> Floats:
        with reporting(
            f"The graph of {self.bundle.path} failed",
            "If memory ran out, use shorter audio; otherwise export the model again.",
        ):
            logits: Floats = self._session.run(["logits"], {"features": features})[0]
        if not np.isfinite(logits).all():
            raise BundleError(
                f"{self.bundle.path} gives values that are no numbers. Export the model again."
            )
        return logits

    def _check_ports(self, file: str) -> None:
        inputs = [port.name for port in self._session.get_inputs()]
        outputs = [(port.name, port.shape[-1]) for port in self._session.get_outputs()]
        if inputs != ["features"] or outputs != [("logits", len(self.labels))]:
            raise BundleError(
                f"{file} of {self.bundle.path} has other inputs or outputs than its manifest says. "
                "Export the model again."
            )


def share(logits: Floats) -> Floats:
    """Softmax over the last axis: shares of one."""
    raised: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return found


def probability(logits: Floats) -> Floats:
    """Sigmoid: of each label for itself."""
    with np.errstate(over="ignore"):
        found: Floats = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits))
    return found


def open_classifier(
    path: str | os.PathLike[str], *, profile: str | None = None, threads: int | None = None
) -> Classifier:
    """Loads the bundle of a tagger or genre classifier.

    Raises:
        BundleNotFoundError: There is none at this path.
        BundleError: It is damaged, or of another kind.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    return Classifier(ClassifierBundle(os.fspath(path)), profile=profile, threads=threads)
