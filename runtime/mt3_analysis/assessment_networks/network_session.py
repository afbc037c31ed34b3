"""Runs networks that assess performances with ONNX Runtime: samples and notes in, scores out.

Contract: an `AssessorNetworks` holds the sessions of a bundle.  Recordings are cut into clips of
the audio encoder's length; frames of a clip are made once and serve every network.  A clip with
fewer than one frame or, for a network that reads notes, without notes is left out and counted.
Threads may share it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.octuple_tokens import (
    check_notes,
    in_order,
    note_spans,
    octuple_tokens,
)
from mt3_runtime.arguments.argument_checks import as_path
from mt3_runtime.backends.ort_common import check_threads, import_onnxruntime
from mt3_runtime.backends.ort_session import open_session, reporting
from mt3_runtime.bundles.assessor_networks import (
    AssessorNetwork,
    AssessorNetworksBundle,
    AudioEncoderSpec,
)
from mt3_runtime.bundles.weights_in_place import FOLDER
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.errors import BundleError, OptionError

Floats = npt.NDArray[np.float32]

#: Deviation of a clip's samples is taken for at least this, as published.
QUIETEST = 1e-7


@dataclass(frozen=True, eq=False)
class NetworkScores:
    """What a network says of a clip.

    Attributes:
        dimensions: Names of the scores.
        scores: float32 [k], 0 to 100 as published: an order of takes, no marks.
        log_variance: float32 [k], learned; the same for every recording.
        ordinal: float32 [classes - 1], probabilities of being above class c; empty where the
            network has no such output.
        inside: What shows how the modalities were weighed, each without its axis of rows: gates
            [n, W], audio_to_midi [t, n], midi_to_audio [n, t], steps_attention [steps],
            audio_embedding and midi_embedding [W], pooled [W].
    """

    dimensions: tuple[str, ...]
    scores: Floats
    log_variance: Floats
    ordinal: Floats
    inside: Mapping[str, Floats] = field(default_factory=lambda: MappingProxyType({}))

    def __getitem__(self, dimension: str) -> float:
        """The score of a dimension; raises `KeyError` for one that there is none of."""
        if dimension not in self.dimensions:
            raise KeyError(dimension)
        return float(self.scores[self.dimensions.index(dimension)])


@dataclass(frozen=True, eq=False)
class RecordingScores:
    """What a network says of a recording.

    Attributes:
        clips: Of each clip that was assessed.
        starts: Where they begin [s].
        left_out: Clips that were not: too short for a frame, or without notes.
    """

    clips: tuple[NetworkScores, ...]
    starts: tuple[float, ...]
    left_out: int

    @property
    def scores(self) -> Floats:
        """The mean of the clips, float32 [k]."""
        found: Floats = np.mean([clip.scores for clip in self.clips], axis=0).astype(np.float32)
        return found


def normalised_clip(samples: Floats) -> Floats:
    """Samples of mean 0 and standard deviation 1, divisor n - 1; loudness is lost, as published."""
    spread = max(float(samples.std(ddof=1)) if len(samples) > 1 else 0.0, QUIETEST)
    found: Floats = ((samples - samples.mean()) / np.float32(spread)).astype(np.float32)
    return found


class AssessorNetworks:
    """The sessions of a bundle, each made when it is first needed.

    Attributes:
        bundle: Where they are from.
        manifest: What it says of itself.
        profile: Of its graphs.
    """

    def __init__(
        self,
        bundle: AssessorNetworksBundle,
        *,
        profile: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Checks the options; graphs are loaded on first use.

        Args:
            bundle: The networks.
            profile: Graph profile; ``cpu`` where the bundle has it, else its first one.
            threads: All usable cores by default.

        Raises:
            BundleError: There are no graphs of that profile.
            OptionError: ``threads`` is no number from 1 to 1024.
        """
        check_threads(threads)
        self.bundle, self.manifest = bundle, bundle.manifest
        known = self.manifest.profiles
        self.profile = profile or ("cpu" if "cpu" in known else known[0])
        if self.profile not in known:
            raise BundleError(
                f"{bundle.path} holds no graphs of profile {profile!r:.40} (it has: "
                f"{', '.join(known)}). Export the networks again with --profiles."
            )
        self._threads = threads or usable_cores()
        self._sessions: dict[tuple[str, str], Any] = {}

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of its networks."""
        return tuple(network.name for network in self.manifest.networks)

    def frames(self, samples: npt.ArrayLike) -> Floats:
        """Frames [t, width] of one clip.

        Args:
            samples: Mono [n] at the audio encoder's rate.

        Raises:
            OptionError: They are no samples, or too few for a frame.
            BundleError: There is no audio encoder, or ONNX Runtime failed.
        """
        spec = self._audio()
        clip = _mono(samples)
        if not spec.shortest <= len(clip) <= spec.samples:
            raise OptionError(
                f"a clip has {spec.shortest:,} to {spec.samples:,} samples at "
                f"{spec.sample_rate} Hz, got {len(clip):,}."
            )
        given = normalised_clip(clip) if spec.normalise else clip
        frames: Floats = self._run("", "audio_encoder", {"audio": given[np.newaxis]})["frames"][0]
        return frames

    def assess(
        self, network: str, *, frames: Floats | None = None, notes: npt.ArrayLike | None = None
    ) -> NetworkScores:
        """Scores of one clip.

        Args:
            network: Its name.
            frames: Of the clip, as `frames` gives them [t, width].
            notes: Of the clip [n, 4]: onset and offset in seconds from its beginning, pitch,
                velocity.

        Raises:
            OptionError: A modality that the network needs is missing, or is empty.
            BundleError: There is no such network, or ONNX Runtime failed.
        """
        spec = self.bundle.network(network)
        fed: dict[str, npt.NDArray[Any]] = {}
        if spec.hears:
            fed["frames"] = self._frames(network, frames)
        if spec.reads:
            fed |= self._notes(spec, notes, 0 if frames is None else len(frames))
        inside = self._run(spec.name, "fusion", fed)
        said = self._run(spec.name, "head", {"pooled": inside["pooled"]})
        ordinal = said.get("ordinal", np.zeros((1, 0), np.float32))[0]
        return NetworkScores(
            spec.dimensions,
            said["scores"][0],
            said["log_variance"],
            _sigmoid(ordinal),
            MappingProxyType({name: value[0] for name, value in inside.items()}),
        )

    def assess_recording(
        self,
        network: str,
        *,
        samples: npt.ArrayLike | None = None,
        notes: npt.ArrayLike | None = None,
    ) -> RecordingScores:
        """Scores of a recording, clip by clip.

        Args:
            network: Its name.
            samples: Mono [n] at the audio encoder's rate.
            notes: Of the recording [n, 4], as in `assess`; a note belongs to the clip it begins in.

        Raises:
            OptionError: A modality that the network needs is missing, the two have different
                lengths by more than a clip, or there is no clip that can be assessed.
            BundleError: There is no such network, or ONNX Runtime failed.
        """
        spec, seconds = self.bundle.network(network), self._clip_seconds()
        heard = None if samples is None or not spec.hears else _mono(samples)
        read = None if notes is None or not spec.reads else check_notes(notes)
        if (heard is None and spec.hears) or (read is None and spec.reads):
            raise OptionError(f"network {network} ({spec.fusion}) needs {_needs(spec)}.")
        lengths = []
        if heard is not None:
            lengths.append(len(heard) / self._audio().sample_rate)
        if read is not None:
            lengths.append(float(read[:, 0].max(initial=0.0)))
        if len(lengths) == 2 and lengths[1] > lengths[0] + seconds:
            raise OptionError(
                f"the last note begins at {lengths[1]:.1f} s, the audio ends at {lengths[0]:.1f} "
                "s; expected audio and notes of one performance."
            )
        count = int(np.ceil(lengths[0] / seconds)) if spec.hears else int(lengths[0] // seconds) + 1
        return self._clips(spec, heard, read, count, seconds)

    def _clips(
        self, spec: AssessorNetwork, heard: Floats | None, read: Any, count: int, seconds: float
    ) -> RecordingScores:
        found, starts = [], []
        for index in range(count):
            start = index * seconds
            frames = notes = None
            if heard is not None:
                audio = self._audio()
                piece = heard[index * audio.samples : (index + 1) * audio.samples]
                if len(piece) < audio.shortest:
                    continue
                frames = self.frames(piece)
            if read is not None:
                notes = read[(read[:, 0] >= start) & (read[:, 0] < start + seconds)].copy()
                if not len(notes):
                    continue
                notes[:, :2] -= start
            found.append(self.assess(spec.name, frames=frames, notes=notes))
            starts.append(start)
        if not found:
            raise OptionError(
                f"there is nothing to assess: network {spec.name} needs {_needs(spec)}, and none "
                f"of {count} clips has them."
            )
        return RecordingScores(tuple(found), tuple(starts), count - len(found))

    def _frames(self, network: str, frames: object) -> Floats:
        """Frames [1, t, width]; raises `OptionError` if they are none."""
        try:
            found = np.zeros((0, 0)) if frames is None else np.asarray(frames, np.float32)
        except (TypeError, ValueError):
            found = np.zeros((0, 0))
        width = None if self.manifest.audio is None else self.manifest.audio.width
        sound = found.ndim == 2 and len(found) > 0 and width in (None, found.shape[1])
        if not sound or not np.isfinite(found).all():
            raise OptionError(
                f"network {network} needs audio: finite frames [t, {width or 'width'}] of the clip."
            )
        given: Floats = found[np.newaxis].astype(np.float32)
        return given

    def _notes(
        self, spec: AssessorNetwork, notes: npt.ArrayLike | None, frames: int
    ) -> dict[str, npt.NDArray[Any]]:
        if notes is None or not len(check_notes(notes)):
            raise OptionError(f"network {spec.name} needs notes [n, 4] of the clip.")
        tokens = octuple_tokens(notes, most=spec.max_notes, fill=spec.fill)
        encoded = self._run(spec.name, "midi_encoder", {"tokens": tokens[np.newaxis]})["notes"]
        if spec.alignment != "note":
            return {"notes": encoded}
        audio = self._audio()
        onsets = in_order(notes)[: len(tokens), 0]
        spans = note_spans(onsets, frames, frame_seconds=audio.hop / audio.sample_rate)
        filled = np.zeros((len(tokens), 2), np.int64)
        filled[:, 1] = 1
        filled[: len(spans)] = spans
        return {"notes": encoded, "spans": filled[np.newaxis]}

    def _clip_seconds(self) -> float:
        audio = self.manifest.audio
        return 10.0 if audio is None else audio.samples / audio.sample_rate

    def _audio(self) -> AudioEncoderSpec:
        if self.manifest.audio is None:
            raise BundleError(
                f"{self.bundle.path} holds no audio encoder. Export the networks from a folder "
                "that has one in audio_encoder/."
            )
        return self.manifest.audio

    def _run(self, network: str, role: Any, fed: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        session = self._session(network, role)
        names = [port.name for port in session.get_outputs()]
        with reporting(
            f"The {role} of {self.bundle.path} failed",
            "If memory ran out, use shorter clips; otherwise export the networks again.",
        ):
            found = dict(zip(names, session.run(names, dict(fed)), strict=True))
        for name, value in found.items():
            if not np.isfinite(value).all():
                raise BundleError(
                    f"{self.bundle.path} gives {name} that are no numbers. Export it again."
                )
        return found

    def _session(self, network: str, role: Any) -> Any:
        key = (network, role)
        if key not in self._sessions:
            graph = self.bundle.graph(network, role, self.profile)
            runtime = import_onnxruntime()
            placed = self.bundle.in_place(graph)
            entries = {} if placed is None else {FOLDER: placed.folder}
            source = self.bundle.verified(graph) if placed is None else placed.model
            with reporting(
                f"ONNX Runtime {runtime.__version__} cannot load {graph.file} of "
                f"{self.bundle.path}",
                "Export the networks again, or update ONNX Runtime.",
            ):
                made = open_session(runtime, source, threads=self._threads, entries=entries)
            self.bundle.check_unchanged(graph)
            self._sessions[key] = made
        return self._sessions[key]


def _mono(samples: npt.ArrayLike) -> Floats:
    """Samples float32 [n]; raises `OptionError` if they are none."""
    try:
        found = np.asarray(samples, np.float32)
    except (TypeError, ValueError):
        found = np.zeros((0, 0), np.float32)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise OptionError("samples must be one row of finite numbers.")
    return found


def _needs(spec: AssessorNetwork) -> str:
    parts = [name for name, needed in (("samples", spec.hears), ("notes", spec.reads)) if needed]
    return " and ".join(parts)


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):
        found: Floats = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits))
    return found


def open_assessor_networks(
    path: str | os.PathLike[str], *, profile: str | None = None, threads: int | None = None
) -> AssessorNetworks:
    """Loads a bundle of networks that assess performances.

    Raises:
        BundleNotFoundError: There is none at this path.
        BundleError: It is damaged, or of another kind.
    """
    return AssessorNetworks(
        AssessorNetworksBundle(as_path("path", path)), profile=profile, threads=threads
    )
