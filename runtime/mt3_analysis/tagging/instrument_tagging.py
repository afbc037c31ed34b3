"""Names the instruments of a recording: `tag`.

Contract: the transcription's own evidence is always there, a tagger's if one is installed; both are
shown, and who agrees.  Recordings are read in blocks, so memory does not depend on their length.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from mt3_analysis.networks.classifier_session import Classifier, Heard
from mt3_analysis.networks.installed_classifiers import ADVICE, find_installed
from mt3_analysis.networks.listening import Listen, listening
from mt3_analysis.tagging.instrument_families import FAMILIES, family_of_label
from mt3_analysis.tagging.note_evidence import note_evidence
from mt3_analysis.tagging.tag_results import Agreement, Evidence, Hearer, Tags, TagWindow, ranked
from mt3_runtime.errors import BundleError

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Transcription

#: A family is heard by a tagger if its best class has this probability, and this share of the best
#: family's: absolute scores mean little, and an instrument in a band gets a tenth of a soloist's.
TAGGER_LEAST, TAGGER_OF_BEST = 0.05, 0.15
#: A family is heard in the notes if so much of what sounds is its.
NOTES_LEAST = 0.1
#: Classes that are listed.
TOP_LABELS = 10
#: Scores below are left out of windows.
_SHOWN = 0.01


def load_tagger(
    name: str | os.PathLike[str] | None = None, *, threads: int | None = None
) -> Classifier | None:
    """Loads a tagger by name or path; the only installed one, or None, if none is named.

    Raises:
        BundleError: It is damaged, of another kind, or knows no instrument.
        BundleNotFoundError: There is none of this name.
        OptionError: Several are installed, and none is named.
    """
    bundle = find_installed("tagger", name)
    if bundle is None:
        return None
    if not any(map(family_of_label, bundle.manifest.labels)):
        raise BundleError(
            f"{bundle.path} has no label that names an instrument as AudioSet does (such as "
            f"'Piano' or 'Drum kit'); its first is {bundle.manifest.labels[0]!r}. Export it with "
            "the labels it was taught with: --labels FILE."
        )
    return Classifier(bundle, threads=threads)


def tag(
    audio: AudioSource,
    *,
    sr: float | None = None,
    model: Model | str | os.PathLike[str] | None = None,
    tagger: Classifier | str | os.PathLike[str] | bool | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Tags:
    """Names the instruments of a recording, over time and overall.

    Args:
        audio: A path, a binary file object or an array, as `mt3_runtime.transcribe` takes them.
        sr: Sample rate of an array [Hz].
        model: What transcribes: a loaded model, a name or a path; the usual one by default.
        tagger: What tags: loaded, a name or a path; None for the only installed one, if there is
            one; False for none.
        device: Of the transcription.
        threads: CPU threads; all usable cores by default.

    Raises:
        AudioError: The audio cannot be read, or is shorter than what a tagger hears at once.
        BundleError: A model is missing, damaged or of another kind.
        OptionError: An argument is out of range.
    """
    from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed where a model is given
    from mt3_runtime.model import Model  # noqa: PLC0415

    heard_by = _chosen(tagger, threads)
    listen = listening(audio, sr)
    if isinstance(model, Model):
        result = model.transcribe_notes(*listen.source)
    else:
        with load_model(model, device=device, threads=threads) as loaded:
            result = loaded.transcribe_notes(*listen.source)
    return tags_of(result, heard_by, listen, wanted=tagger is not False)


def tags_of(
    result: Transcription, tagger: Classifier | None, listen: Listen, *, wanted: bool = True
) -> Tags:
    """The instruments of a recording that was transcribed.

    Args:
        result: The transcription.
        tagger: What tags; None for none.
        listen: Gives the recording to the tagger.
        wanted: Whether to say so if there is no tagger.

    Raises:
        AudioError: The audio cannot be read.
        BundleError: The tagger fails.
    """
    notes = note_evidence(result.notes, result.duration, result.model)
    warnings = list(result.warnings)
    found = None
    if tagger is not None:
        with listen(tagger.sample_rate) as stream:
            found = tagger_evidence(tagger, tagger.hear(stream))
        if not found.windows:
            shortest = tagger.manifest.window.shortest / tagger.sample_rate
            warnings.append(
                f"The recording is shorter than the {shortest:g} s that the tagger hears at once."
            )
    elif wanted:
        warnings.append(f"No tagger is installed: the notes alone speak. {ADVICE['tagger']}")
    if not notes.families and (found is None or not found.families):
        warnings.append("No instrument was heard.")
    return Tags(result.duration, notes, found, agreement(notes, found), tuple(warnings))


def _chosen(
    tagger: Classifier | str | os.PathLike[str] | bool | None,  # noqa: FBT001  as `tag` takes it
    threads: int | None,
) -> Classifier | None:
    if isinstance(tagger, Classifier):
        return tagger
    if isinstance(tagger, bool):
        return load_tagger(threads=threads) if tagger else None
    return load_tagger(tagger, threads=threads)


def tagger_evidence(tagger: Classifier, heard: Iterable[Heard]) -> Evidence:
    """What a tagger says: the mean over all that is not silent, weighted by length.

    Args:
        tagger: Whose labels and activation count.
        heard: What `Classifier.hear` gave.
    """
    families = [family_of_label(label) for label in tagger.labels]
    windows, total, weight = [], np.zeros(len(families)), 0.0
    for row in heard:
        best: dict[str, float] = {}
        if row.logits is not None:
            scores = tagger.scores(row.logits).astype(np.float64)
            total += scores * (row.end - row.start)
            weight += row.end - row.start
            best = _by_family(families, scores)
        windows.append(TagWindow(row.start, row.end, ranked(best, _SHOWN)))
    mean = total / weight if weight else total
    labels = ranked(dict(zip(tagger.labels, mean, strict=True)))[:TOP_LABELS]
    overall = ranked(_by_family(families, mean))
    return Evidence("tagger", tagger.manifest.name, overall, labels, tuple(windows))


def _by_family(
    families: list[str | None], scores: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> dict[str, float]:
    """The best score of each family's classes."""
    best: dict[str, float] = {}
    for family, score in zip(families, scores, strict=True):
        if family is not None:
            best[family] = max(best.get(family, 0.0), float(score))
    return best


def present(evidence: Evidence) -> set[str]:
    """The families that a source hears, by its rule."""
    if not evidence.families:
        return set()
    if evidence.source == "transcription":
        return {item.name for item in evidence.families if item.score >= NOTES_LEAST}
    least = max(TAGGER_LEAST, TAGGER_OF_BEST * evidence.families[0].score)
    return {item.name for item in evidence.families if item.score >= least}


def agreement(notes: Evidence, tagger: Evidence | None) -> tuple[Agreement, ...]:
    """Who hears which family, first those that both hear."""
    noted = present(notes)
    tagged = present(tagger) if tagger is not None else set()
    hearers: tuple[tuple[Hearer, set[str]], ...] = (
        ("both", noted & tagged),
        ("tagger", tagged - noted),
        ("transcription", noted - tagged),
    )
    order = [family.name for family in FAMILIES]
    return tuple(
        Agreement(name, hearer)
        for hearer, names in hearers
        for name in sorted(names, key=order.index)
    )
