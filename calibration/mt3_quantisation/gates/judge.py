"""Judges a quantised bundle: measures everything and applies the precision gate.

Contract: `judge` compares a bundle with the exact one it was made from, on the ``check`` part of
the material and on the user's own recordings, each set by itself: to pass, the gate must hold for
each.  Whatever the gate, tokens must not depend on the batch they are decoded in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mt3_export.bundle_weights import parsed_graph
from mt3_quantisation.forms.recipes import Talk
from mt3_quantisation.gates.exact_bundle import Heard, Source, transcribed
from mt3_quantisation.gates.gate import GATES, Change, GateName
from mt3_quantisation.gates.material import Excerpt
from mt3_quantisation.gates.measure import (
    FORCED_SEGMENTS,
    ROLES,
    Comparison,
    Drift,
    compared,
    drift,
    independent,
    load_seconds,
    total_bytes,
)
from mt3_quantisation.gates.teacher_forcing import segments_of
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.precision import Verdict
from mt3_runtime.loading import load_model

INDEPENDENT_EXCERPTS = 6
"""Excerpts that are decoded again with other slots."""


@dataclass(frozen=True)
class Judgement:
    """All that was measured.

    Attributes:
        sets: Comparisons by the name of the set: ``check``, and ``own`` where there is one.
        drift: Of the thoughts about the first set.
        independent: Whether tokens are the same whatever they are decoded with.
        sizes: Bytes of the exact graphs, and of the others.
        loads: Seconds to load either; None where other graphs stood in.
        verdict: What the gate says.
    """

    sets: dict[str, Comparison]
    drift: Drift
    independent: bool
    sizes: tuple[int, int]
    loads: tuple[float, float] | None
    verdict: Verdict

    def document(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "verdict": asdict(self.verdict),
            "sets": {
                name: {**each.figures, "segments": each.segments, "files": _files(each.changes)}
                for name, each in self.sets.items()
            },
            "drift": asdict(self.drift),
            "independent": self.independent,
            "bytes": {"exact": self.sizes[0], "other": self.sizes[1]},
            "load_seconds": self.loads and {"exact": self.loads[0], "other": self.loads[1]},
        }


def judge(
    source: Source,
    made: Bundle,
    sets: dict[str, Sequence[Excerpt]],
    *,
    gate: GateName,
    device: str = "cpu",
    stand_in: Bundle | None = None,
    talk: Talk,
) -> Judgement:
    """Judges a bundle.

    Args:
        source: What it was made from.
        made: The bundle.
        sets: Labelled excerpts by the name of the set, ``check`` first.
        gate: Which gate.
        device: Where it runs.
        stand_in: Does its arithmetic in its place, on the CPU.
        talk: Says what is going on.
    """
    played = stand_in or made
    where = "cpu, by graphs that stand in for it" if stand_in else device
    found: dict[str, Comparison] = {}
    faults: list[str] = []
    first: list[Heard] = []
    with load_model(played.path, device=device, threads=source.threads) as model:
        for name, excerpts in sets.items():
            talk(f"listening to recordings: {_size(name, excerpts)}")
            exact = source.listen(excerpts)
            other = transcribed(model, excerpts, [heard.features for heard in exact])
            first = first or [h for h in other if not h.excerpt.take][:INDEPENDENT_EXCERPTS]
            found[name] = compared(exact, other)
            faults += [f"{name}: {fault}" for fault in _faults(gate, found[name].changes)]
    talk("decoding some again in other slots")
    steady = independent(played, device, first)
    if not steady:
        faults.append("tokens depend on what they are decoded together with")
    talk("comparing what they think of the same tokens")
    drifted = _drift(source, played, next(iter(sets.values())))
    profile = made.profiles[0]
    both = (source.bundle, made)
    loads = None if stand_in else load_seconds(*both, device=device, profile=profile)
    figures = {"kl": drifted.kl, "flips": drifted.flips}
    for name, each in found.items():
        figures |= {f"{name}_{key}": round(value, 6) for key, value in each.figures.items()}
    sizes = ", ".join(_size(name, excerpts) for name, excerpts in sets.items())
    judged = f"against {source.manifest.precision}; recordings: {sizes}; {where}"
    return Judgement(
        sets=found,
        drift=drifted,
        independent=steady,
        sizes=(total_bytes(source.bundle, profile), total_bytes(made, profile)),
        loads=loads,
        verdict=Verdict(gate, not faults, tuple(faults), judged, figures),
    )


def _size(name: str, excerpts: Sequence[Excerpt]) -> str:
    pieces = len({excerpt.name for excerpt in excerpts})
    takes = len(excerpts) // pieces
    return f"{pieces} of {name}" + (f", {takes} takes each" if takes > 1 else "")


def _faults(gate: GateName, changes: Sequence[Change]) -> list[str]:
    if not any(change.exact.whole.matched for change in changes):
        return ["the exact model finds none of the labelled notes, so nothing can be judged by it"]
    return GATES[gate](changes)


def _drift(source: Source, played: Bundle, excerpts: Sequence[Excerpt]) -> Drift:
    """Compares thoughts, on the CPU, in the first profile that the judged bundle has."""
    profile = played.profiles[0]
    exact = {role: source.graph(role, profile) for role in ROLES}
    other = {role: parsed_graph(played, played.graph(role, profile)) for role in ROLES}
    heard = source.listen(excerpts)
    segments = segments_of(heard, source.manifest, most=FORCED_SEGMENTS)
    return drift(exact, other, source.manifest, segments, threads=source.threads)


def _files(changes: Sequence[Change]) -> list[dict[str, Any]]:
    return [
        {"name": c.name, "exact": c.exact.whole.f1, "other": c.other.whole.f1, "change": c.f1}
        for c in changes
    ]
