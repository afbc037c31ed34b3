"""Names the genre of a recording: `genre`, and `detect_genre_hybrid` as published.

Contract: every part may be missing or fail; the others go on, and the result names what it was made
of and why a part is not there.  Nothing is swallowed.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from mt3_analysis.networks.listening import Listen, listening
from mt3_runtime.bundles.classifier import ClassifierBundle, Kind
from mt3_runtime.errors import AudioError, BundleError, MT3Error, OptionError, ResultWarning

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.model import Model
    from mt3_runtime.notes.note import Note

PUBLISHED, EVIDENCE = "published", "evidence"
_CLIP = published_ensemble.CLIP_SECONDS

Name = str | os.PathLike[str]
Classifiers = Name | Sequence[Name] | Mapping[str, float]
"""A genre classifier; several, which count alike; or several by their weights."""


@lru_cache(maxsize=2)  # a tagger and a genre classifier
def _loaded(path: str, _export_id: str, threads: int | None) -> Classifier:
    return Classifier(ClassifierBundle(path), threads=threads)


def _classifier(kind: Kind, name: Name | None, threads: int | None) -> Classifier:
    """The bundle of a kind; the last one of each is kept.

    Raises:
        BundleError: None is installed, or it is damaged or of another kind.
        OptionError: Several are installed, and none is named.
    """
    bundle = find_installed(kind, name)
    if bundle is None:
        raise BundleError(f"No bundle of kind {kind} is installed. {ADVICE[kind]}")
    return _loaded(str(bundle.path.absolute()), bundle.manifest.export_id, threads)


def _clip_shares(classifier: Classifier, listen: Listen) -> dict[str, float]:
    """Shares by label of the published clip: 30 s, of which a window is heard."""
    rate = classifier.sample_rate
    most, found, blocks = round(_CLIP * rate), 0, []
    with listen(rate) as stream:
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
    kind: Kind, name: Name | None, listen: Listen, threads: int | None, top: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Shares by label, and the component as it is shown; none, and ``error``, if it failed."""
    try:
        shares = _clip_shares(_classifier(kind, name, threads), listen)
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
    if not audio_path:
        return published_ensemble.heuristic_result(sonic_genome, lyrical_genome)
    listen = listening(audio_path)
    with listen(RATE):  # a recording that cannot be read is no part that failed
        pass
    return _hybrid(listen, sonic_genome, lyrical_genome, tagger, classifier, threads)


def _hybrid(
    listen: Listen,
    sonic: Mapping[str, Any],
    lyrics: Mapping[str, Any] | None,
    tagger: Name | None,
    classifier: Name | None,
    threads: int | None,
) -> dict[str, Any]:
    """The published ensemble; errors and warnings as of `detect_genre_hybrid`."""
    heuristic = published_ensemble.heuristic_result(sonic, lyrics)
    shares, ml = _part("genre", classifier, listen, threads, published_ensemble.TOP_GENRES)
    genres = published_ensemble.genres_of(shares)
    heard, instruments_part = _part(
        "tagger", tagger, listen, threads, published_ensemble.TOP_LABELS
    )
    instruments = published_ensemble.instruments_of(heard)
    if "error" not in ml:
        ml = {"raw_predictions": ml["raw"], "canonical_scores": genres}
    components = {"ml": ml, "instruments": {**instruments_part, "instruments": instruments}}
    for part in components.values():
        if "error" in part:
            warnings.warn(part["error"], ResultWarning, stacklevel=3)
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
    classifier: Classifiers | None = None,
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
        classifier: Name or path of a genre classifier, a list of several, or their weights by
            name; the only installed one by default.
        threads: CPU threads; all usable cores by default.

    Raises:
        AudioError: The recording cannot be read.
        BundleError: A bundle that is named is missing, damaged or of another kind.
        OptionError: An argument is out of range, or the rules cannot be read.
    """
    listen = listening(audio, sr)
    return genre_of(
        listen,
        lambda: _notes(listen.source, model, threads),
        sonic=sonic,
        lyrics=lyrics,
        rules=rules,
        tagger=tagger,
        classifier=classifier,
        threads=threads,
    )


def genre_of(
    listen: Listen,
    notes: Callable[[], Sequence[Note]],
    *,
    sonic: Mapping[str, Any] | None = None,
    lyrics: Mapping[str, Any] | None = None,
    rules: Name | EvidenceRules = EVIDENCE,
    tagger: Name | None = None,
    classifier: Classifiers | None = None,
    threads: int | None = None,
) -> Genre:
    """Names the genre of what can be listened to; errors as of `genre`.

    Args:
        listen: Gives the recording at a rate, as often as it is asked.
        notes: Transcribes it; called if the rules want notes.
        sonic: As in `genre`, as all that follow.
        lyrics: As there.
        rules: As there.
        tagger: As there.
        classifier: As there.
        threads: As there.
    """
    table, weights = _rules(rules), _weights(classifier)
    if sonic is None:
        with listen(RATE) as stream:
            sonic = sonic_features(stream)
    if table is None:
        if len(weights) > 1:
            raise OptionError('rules="published" takes one genre classifier; name one.')
        return _as_published(listen, sonic, lyrics, tagger, next(iter(weights)), threads)
    remarks: list[str] = []
    hearer = _optional("tagger", tagger, threads, remarks)
    tagged = {} if hearer is None else _mean_probabilities(hearer, listen)
    heard = {
        "tagger": genre_instruments.of_labels(tagged),
        "transcription": genre_instruments.of_notes(notes()),
    }
    together = genre_instruments.together(heard.values())
    points = heuristic_points(sonic, lyrics)
    parts = {
        "heuristics": {name: float(value) for name, value in points.items() if value},
        "ml": _averaged(weights, listen, threads, remarks),
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


def _weights(classifier: Classifiers | None) -> dict[Name | None, float]:
    """Weights of genre classifiers by name; None stands for the only installed one.

    Raises:
        OptionError: There is none, or a weight is no positive number.
    """
    if classifier is None or isinstance(classifier, str | os.PathLike):
        return {classifier: 1.0}
    several = classifier if isinstance(classifier, Mapping) else dict.fromkeys(classifier, 1.0)
    weights: dict[Name | None, float] = dict(several.items())
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise OptionError(f"The weight of {name} is {weight!r}; expected a number above 0.")
    if not weights:
        raise OptionError("classifier is empty; name a genre classifier, or leave it out.")
    return weights


def _averaged(
    weights: Mapping[Name | None, float], listen: Listen, threads: int | None, remarks: list[str]
) -> dict[str, float]:
    """Scores of genres by all classifiers, each brought to a sum of one; none if there is none."""
    found: dict[str, float] = {}
    total = sum(weights.values())
    for name, weight in weights.items():
        classifier = _optional("genre", name, threads, remarks)
        if classifier is not None:
            genres = published_ensemble.genres_of(_clip_shares(classifier, listen))
            whole = sum(genres.values())
            for each, score in genres.items():
                found[each] = found.get(each, 0.0) + weight / total * score / whole
    return found


def _rules(rules: Name | EvidenceRules) -> EvidenceRules | None:
    """The table of numbers; None stands for the published ensemble."""
    if isinstance(rules, EvidenceRules):
        return rules
    if rules == PUBLISHED:
        return None
    return EvidenceRules() if rules == EVIDENCE else read_rules(Path(rules))


def _optional(
    kind: Kind, name: Name | None, threads: int | None, remarks: list[str]
) -> Classifier | None:
    """A network, or None with a remark if none is installed; one that is named must be there."""
    bundle = find_installed(kind, name)
    if bundle is None:
        remarks.append(f"No bundle of kind {kind} is installed. {ADVICE[kind]}")
        return None
    return _loaded(str(bundle.path.absolute()), bundle.manifest.export_id, threads)


def _mean_probabilities(tagger: Classifier, listen: Listen) -> dict[str, float]:
    total: Any = 0.0
    seconds = 0.0
    with listen(tagger.sample_rate) as stream:
        for row in tagger.hear(stream):
            if row.logits is not None:
                total = total + probability(row.logits) * (row.end - row.start)
                seconds += row.end - row.start
    if not seconds:
        return {}
    return dict(zip(tagger.labels, map(float, total / seconds), strict=True))


def _notes(
    source: tuple[AudioSource, float | None], model: Model | Name | None, threads: int | None
) -> Sequence[Note]:
    from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed by the published rules
    from mt3_runtime.model import Model  # noqa: PLC0415

    if isinstance(model, Model):
        return model.transcribe_notes(*source).notes
    with load_model(model, threads=threads) as loaded:
        return loaded.transcribe_notes(*source).notes


def _method(parts: Mapping[str, Mapping[str, float]], tagged: Mapping[str, float]) -> str:
    heard = ("instrument" if tagged else "transcription") if parts["instruments"] else ""
    if parts["ml"]:
        return f"hybrid_ml_{heard}" if heard else "ml"
    return heard or "heuristic"


def _as_published(
    listen: Listen,
    sonic: Mapping[str, Any],
    lyrics: Mapping[str, Any] | None,
    tagger: Name | None,
    classifier: Name | None,
    threads: int | None,
) -> Genre:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResultWarning)
        found = _hybrid(listen, sonic, lyrics, tagger, classifier, threads)
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
