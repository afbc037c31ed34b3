"""The instruments that genre rules name, from notes and from a tagger, on one scale.

Contract: shares 0..1 of what is heard.  A tagger's probabilities are divided by their sum over the
instruments named here, so that both sources say the same kind of thing, and then averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mt3_analysis.tagging.note_evidence import HIT_SECONDS
from mt3_runtime.notes.note import Note

#: Instrument -> General MIDI programs; drums are notes of the percussion channel.
PROGRAMS: Mapping[str, frozenset[int]] = {
    "violin": frozenset({40, 110}),
    "orchestral_strings": frozenset({41, 42, 43, 44, 45, 46, 48, 49}),
    "acoustic_guitar": frozenset({24, 25}),
    "electric_guitar": frozenset({26, 27, 28}),
    "distorted_guitar": frozenset({29, 30, 31}),
    "banjo": frozenset({105}),
    "harmonica": frozenset({22}),
    "piano": frozenset(range(8)),
    "bass": frozenset(range(32, 40)),
    "brass": frozenset(range(56, 64)),
    "reeds": frozenset(range(64, 72)),
    "flutes": frozenset(range(72, 80)),
    "synthesizer": frozenset(range(80, 104)),
}

#: Instrument -> AudioSet's classes, lower case, of which the highest counts.
LABELS: Mapping[str, frozenset[str]] = {
    "violin": frozenset({"violin, fiddle", "violin", "fiddle"}),
    "orchestral_strings": frozenset({"string section", "cello", "orchestra"}),
    "acoustic_guitar": frozenset({"acoustic guitar"}),
    "electric_guitar": frozenset({"electric guitar"}),
    "banjo": frozenset({"banjo"}),
    "harmonica": frozenset({"harmonica"}),
    "piano": frozenset({"piano", "electric piano"}),
    "bass": frozenset({"bass guitar", "double bass"}),
    "brass": frozenset({"brass instrument", "trumpet", "trombone", "french horn"}),
    "reeds": frozenset({"saxophone", "clarinet"}),
    "flutes": frozenset({"flute"}),
    "synthesizer": frozenset({"synthesizer"}),
    "drums": frozenset({"drum", "drum kit", "snare drum", "bass drum", "drum machine"}),
}
_LEAST = 0.02
"""Probability under which a class is not heard at all."""


def of_notes(notes: Iterable[Note]) -> dict[str, float]:
    """Shares of length times confidence; other instruments count in the total."""
    weights: dict[str, float] = {}
    total = 0.0
    for note in notes:
        weight = max(note.offset - note.onset, HIT_SECONDS) * note.confidence
        total += weight
        names = [name for name, programs in PROGRAMS.items() if note.program in programs]
        for name in ["drums"] if note.is_drum else names:
            weights[name] = weights.get(name, 0.0) + weight
    return {name: weight / total for name, weight in weights.items()} if total else {}


def of_labels(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Shares of a tagger's probabilities, by label."""
    heard: dict[str, float] = {}
    for name, labels in LABELS.items():
        best = max((p for label, p in probabilities.items() if label.lower() in labels), default=0)
        if best >= _LEAST:
            heard[name] = float(best)
    total = sum(heard.values())
    return {name: value / total for name, value in heard.items()}


def together(sources: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of the sources that hear anything."""
    there = [source for source in sources if source]
    names = {name for source in there for name in source}
    return {
        name: sum(source.get(name, 0.0) for source in there) / len(there) for name in sorted(names)
    }
