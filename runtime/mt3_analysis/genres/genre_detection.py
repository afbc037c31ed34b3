"""Names the genre of a recording: `genre`, and `detect_genre_hybrid` as published.

Contract: every part may be missing or fail; the others go on, and the result names what it was made
of and why a part is not there.  Nothing is swallowed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_analysis.genres import genre_instruments, published_ensemble
from mt3_analysis.genres.evidence_ensemble import EvidenceRules, boosts, combine, read_rules
from mt3_analysis.genres.genre_results import Genre, GenrePrediction
from mt3_analysis.genres.heuristic_rules import DEFAULTS, heuristic_points
from mt3_analysis.genres.sonic_features import RATE, sonic_features
from mt3_analysis.networks.classifier_session import Classifier, probability, share
from mt3_analysis.networks.installed_classifiers import ADVICE, find_installed
from mt3_runtime.audio.sources import load_audio, open_audio
from mt3_runtime.bundles.classifier import ClassifierBundle, Kind
from mt3_runtime.errors import AudioError, BundleError, MT3Error, OptionError, ResultWarning

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.model import Model

PUBLISHED, EVIDENCE = "published", "evidence"
_CLIP = published_ensemble.CLIP_SECONDS


@lru_cache(maxsize=2)  # a tagger and a genre classifier
def _loaded(path: str, _export_id: str, threads: int | None) -> Classifier:
    return Classifier(ClassifierBundle(path), threads=threads)


def _classifier(kind: Kind, name: str | os.PathLike[str] | None, threads: int | None) -> Classifier:
    """The bundle of a kind; the last one of each is kept.

    Raises:
        BundleError: None is installed, or it is damaged or of another kind.
        OptionError: Several are installed, and none is named.
    """
    bundle = find_installed(kind, name)
    if bundle is None:
        raise BundleError(f"No bundle of kind {kind} is installed. {ADVICE[kind]}")
    return _loaded(str(bundle.path.absolute()), bundle.manifest.export_id, threads)


def _clip_shares(classifier: Classifier, audio: AudioSource, sr: float | None) -> dict[str, float]:
    """Shares by label of the published clip: 30 s, of which a window is heard."""
    rate = classifier.sample_rate
    most, found, blocks = round(_CLIP * rate), 0, []
    with open_audio(audio, sr=sr, target_rate=rate) as stream:
        for block in stream:
            blocks.append(block)
            found += len(block)
            if found >= most:
                break
    samples = np.concatenate(blocks)[:most]
    window = classifier.manifest.window
    if len(samples) < window.shortest:
        raise AudioError(
            f"The recording has {len(samples)} samples at {rate} Hz; {classifier.manifest.name} "
            f"needs {window.shortest}."
        )
    logits = classifier.logits(samples[: window.samples])
    return dict(zip(classifier.labels, map(float, share(logits)), strict=True))


def _part(
    kind: Kind,
    name: str | os.PathLike[str] | None,
    audio: AudioSource,
    threads: int | None,
    top: int,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Shares by label, and the component as it is shown; none, and ``error``, if it failed."""
    try:
        shares = _clip_shares(_classifier(kind, name, threads), audio, None)
    except MT3Error as error:
        return {}, {"error": str(error)}
    best = sorted(shares.items(), key=lambda item: -item[1])[:top]
    return shares, {"raw": [{"label": label, "score": score} for label, score in best]}


def detect_genre_hybrid(
    audio_path: str | os.PathLike[str] | None,
    sonic_genome: Mapping[str, Any],
    lyrical_genome: Mapping[str, Any] | None = None,
    *,
    tagger: str | os.PathLike[str] | None = None,
    classifier: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """The published genre ensemble, by its published signature.

    Args:
        audio_path: The recording; None for the heuristics alone.
        sonic_genome: Features by `mt3_analysis.genres.heuristic_rules.DEFAULTS`' names.
        lyrical_genome: Themes and vocabulary, or None.
        tagger: Name or path of an audio tagger; the only installed one by default.
        classifier: Name or path of a genre classifier; the only installed one by default.
        threads: CPU threads; all usable cores by default.

    Returns:
        The published dictionary.  A part that failed has ``error`` in ``components``, and a
        `ResultWarning` says so; where neither network is installed, it is that of the heuristics.

    Raises:
        AudioError: The recording cannot be read.
        OptionError: A feature is no number.
    """
    heuristic = published_ensemble.heuristic_result(sonic_genome, lyrical_genome)
    if not audio_path:
        return heuristic
    with open_audio(audio_path):  # a recording that cannot be read is no part that failed
        pass
    shares, ml = _part("genre", classifier, audio_path, threads, published_ensemble.TOP_GENRES)
    genres = published_ensemble.genres_of(shares)
    heard, instruments_part = _part(
        "tagger", tagger, audio_path, threads, published_ensemble.TOP_LABELS
    )
    instruments = published_ensemble.instruments_of(heard)
    if "error" not in ml:
        ml = {"raw_predictions": ml["raw"], "canonical_scores": genres}
    components = {"ml": ml, "instruments": {**instruments_part, "instruments": instruments}}
    for part in components.values():
        if "error" in part:
            warnings.warn(part["error"], ResultWarning, stacklevel=2)
    if all("error" in part for part in components.values()):
        return heuristic
    return published_ensemble.published_result(heuristic, genres, instruments, components)


def genre(
    audio: AudioSource,
    *,
    sr: float | None = None,
    sonic: Mapping[str, Any] | None = None,
    lyrics: Mapping[str, Any] | None = None,
    rules: str | os.PathLike[str] | EvidenceRules = EVIDENCE,
    model: Model | str | os.PathLike[str] | None = None,
    tagger: str | os.PathLike[str] | None = None,
    classifier: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Genre:
    """Names the genre of a recording.

    Args:
        audio: A path, a binary file object or an array.
        sr: Sample rate of an array [Hz].
        sonic: Features by their published names; computed from the audio if None.
        lyrics: ``{"themes": [...], "complexity": {"vocabulary_richness": 0..1}}``, or None.
        rules: ``evidence``, ``published``, or a TOML file of `EvidenceRules`.
        model: What transcribes: a loaded model, a name or a path; the usual one by default.
        tagger: Name or path of an audio tagger; the only installed one by default.
        classifier: Name or path of a genre classifier; the only installed one by default.
        threads: CPU threads; all usable cores by default.

    Raises:
        AudioError: The recording cannot be read.
        BundleError: A bundle that is named is missing, damaged or of another kind.
        OptionError: An argument is out of range, or the rules cannot be read.
    """
    table = _rules(rules)
    source, rate = _reread(audio, sr)
    if sonic is None:
        with open_audio(source, sr=rate, target_rate=RATE) as stream:
            sonic = sonic_features(stream)
    if table is None:
        if not isinstance(audio, str | os.PathLike):
            raise OptionError('rules="published" takes the path of a file.')
        return _as_published(audio, sonic, lyrics, tagger, classifier, threads)
    remarks: list[str] = []
    found = _optional("genre", classifier, threads, remarks)
    hearer = _optional("tagger", tagger, threads, remarks)
    tagged = {} if hearer is None else _mean_probabilities(hearer, source, rate)
    heard = {
        "tagger": genre_instruments.of_labels(tagged),
        "transcription": genre_instruments.of_notes(_notes(source, rate, model, threads)),
    }
    together = genre_instruments.together(heard.values())
    ml = {} if found is None else published_ensemble.genres_of(_clip_shares(found, source, rate))
    points = heuristic_points(sonic, lyrics)
    parts = {
        "heuristics": {name: float(value) for name, value in points.items() if value},
        "ml": ml,
        "instruments": boosts(together, table),
    }
    scores = combine(parts, table)
    features = {name: sonic[name] for name in DEFAULTS if name in sonic}
    instruments = {"together": together, **heard}
    components = {**parts, "instruments_heard": instruments, "features": features}
    best = tuple(GenrePrediction(name, value) for name, value in list(scores.items())[:3])
    primary = best[0].genre if best else published_ensemble.UNKNOWN
    method = _method(parts, heard["tagger"])
    return Genre(primary, best, scores, method, components, tuple(remarks))


def _reread(audio: AudioSource, sr: float | None) -> tuple[AudioSource, float | None]:
    """What can be read several times, and its rate: a path as it is, else samples at 16 kHz."""
    if isinstance(audio, str | os.PathLike):
        return audio, sr
    return load_audio(audio, sr=sr), None


def _rules(rules: str | os.PathLike[str] | EvidenceRules) -> EvidenceRules | None:
    """The table of numbers; None stands for the published ensemble."""
    if isinstance(rules, EvidenceRules):
        return rules
    if rules == PUBLISHED:
        return None
    return EvidenceRules() if rules == EVIDENCE else read_rules(Path(rules))


def _optional(
    kind: Kind, name: str | os.PathLike[str] | None, threads: int | None, remarks: list[str]
) -> Classifier | None:
    """A network, or None with a remark if none is installed; one that is named must be there."""
    bundle = find_installed(kind, name)
    if bundle is None:
        remarks.append(f"No bundle of kind {kind} is installed. {ADVICE[kind]}")
        return None
    return _loaded(str(bundle.path.absolute()), bundle.manifest.export_id, threads)


def _mean_probabilities(
    tagger: Classifier, source: AudioSource, sr: float | None
) -> dict[str, float]:
    total: Any = 0.0
    seconds = 0.0
    with open_audio(source, sr=sr, target_rate=tagger.sample_rate) as stream:
        for row in tagger.hear(stream):
            if row.logits is not None:
                total = total + probability(row.logits) * (row.end - row.start)
                seconds += row.end - row.start
    if not seconds:
        return {}
    return dict(zip(tagger.labels, map(float, total / seconds), strict=True))


def _notes(
    source: AudioSource,
    sr: float | None,
    model: Model | str | os.PathLike[str] | None,
    threads: int | None,
) -> Any:
    from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed by the published rules
    from mt3_runtime.model import Model  # noqa: PLC0415

    if isinstance(model, Model):
        return model.transcribe_notes(source, sr=sr).notes
    with load_model(model, threads=threads) as loaded:
        return loaded.transcribe_notes(source, sr=sr).notes


def _method(parts: Mapping[str, Mapping[str, float]], tagged: Mapping[str, float]) -> str:
    heard = ("instrument" if tagged else "transcription") if parts["instruments"] else ""
    if parts["ml"]:
        return f"hybrid_ml_{heard}" if heard else "ml"
    return heard or "heuristic"


def _as_published(
    audio: str | os.PathLike[str],
    sonic: Mapping[str, Any],
    lyrics: Mapping[str, Any] | None,
    tagger: str | os.PathLike[str] | None,
    classifier: str | os.PathLike[str] | None,
    threads: int | None,
) -> Genre:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResultWarning)
        found = detect_genre_hybrid(
            audio, sonic, lyrics, tagger=tagger, classifier=classifier, threads=threads
        )
    total = sum(found["all_scores"].values()) or 1.0
    scores = {name: value / total for name, value in found["all_scores"].items()}
    best = tuple(
        GenrePrediction(each["genre"], each["confidence"] / 100) for each in found["predictions"]
    )
    said = tuple(str(item.message) for item in caught)
    components = {**found.get("components", {}), "published": found}
    return Genre(
        found["primary_genre"], best, scores, found.get("method", "heuristic"), components, said
    )
