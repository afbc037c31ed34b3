"""Draws assessments as SVG: dimensions as bars with intervals, notes with what was wrong in them.

Contract: plain SVG 1.1, no scripts, no fonts of its own, the same bytes for the same take.  The
colours are those of Okabe and Ito, told apart by people who are colour-blind; what was wrong also
has a shape of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

import numpy as np

from mt3_analysis.assessment.assessment_results import Assessment
from mt3_analysis.assessment.measures.measured_take import Take

BLUE, ORANGE, RED, GREY, GREEN = "#0072B2", "#E69F00", "#D55E00", "#999999", "#009E73"

_ROW, _LEFT, _WIDTH = 22, 170, 420  # pixels
_SECOND = 60.0  # pixels
_WIDEST = 60_000.0  # pixels of a roll: 17 minutes; longer takes are drawn closer
_KEY = 5.0  # pixels of a semitone


def bars(assessments: Sequence[Assessment]) -> str:
    """Dimensions of takes as bars 0..1 with their 80 % intervals."""
    parts: list[str] = []
    top = 10.0
    for said in assessments:
        parts.append(_text(8, top + 14, said.name, weight="bold"))
        top += _ROW
        for each in said.dimensions:
            parts.append(_text(8, top + 14, each.name))
            parts.append(_box(_LEFT, top + 4, _WIDTH, 12, "#EEEEEE"))
            if each.value is None or each.low is None or each.high is None:
                parts.append(_text(_LEFT + 6, top + 14, each.reason or "not assessed", GREY))
            else:
                colour = BLUE if each.head == "execution" else GREEN
                parts.append(_box(_LEFT, top + 4, _WIDTH * each.value, 12, colour))
                low, high = _LEFT + _WIDTH * each.low, _LEFT + _WIDTH * each.high
                parts.append(_line(low, top + 10, high, top + 10, "black"))
                parts += [_line(x, top + 6, x, top + 14, "black") for x in (low, high)]
                parts.append(_text(_LEFT + _WIDTH + 8, top + 14, f"{each.value:.2f}"))
            top += _ROW
        top += 10
    return _svg(_LEFT + _WIDTH + 60, top, parts)


def roll(take: Take) -> str:
    """Notes of a take over time and pitch.

    Matched notes are blue; a line runs from where a note's chord began to where the note did.
    Wrong notes are red, extra ones orange with a cross, missing ones hollow.
    """
    played = take.performance
    if not len(played):
        return _svg(100, 40, [_text(8, 24, "no notes")])
    first, span = float(played.onset_s[0]), max(played.duration_s, 1.0)
    scale = min(_SECOND, _WIDEST / span)
    missing = _missing(take)
    pitches = np.concatenate((played.pitch, missing[:, 1])).astype(int)
    highest, lowest = int(pitches.max()) + 2, int(pitches.min()) - 2
    height = (highest - lowest) * _KEY

    def x(time: float) -> float:
        return 10 + (time - first) * scale

    def y(pitch: float) -> float:
        return 10 + (highest - pitch) * _KEY

    parts = [
        _line(10, y(pitch), 10 + span * scale, y(pitch), "#EEEEEE")
        for pitch in range(lowest, highest)
        if pitch % 12 == 0
    ]
    colours = _colours(take)
    columns = (played.onset_s.tolist(), played.offset_s.tolist(), played.pitch.tolist(), colours)
    for on, off, pitch, colour in zip(*columns, strict=True):
        parts.append(_box(x(on), y(pitch), max((off - on) * scale, 1.5), _KEY - 1, colour))
        if colour == ORANGE:
            ends = x(on), y(pitch), x(on) + 4, y(pitch) + 4
            parts.append(_line(*ends, "black"))
    for time, pitch in missing.tolist():
        parts.append(_box(x(time), y(pitch), 0.25 * scale, _KEY - 1, "none", RED))
    parts += [_line(x(a), y(p) + 2, x(b), y(p) + 2, "black") for a, b, p in _deviations(take)]
    legend = (("as written", BLUE), ("wrong", RED), ("extra", ORANGE), ("missing: hollow", RED))
    for index, (word, colour) in enumerate(legend):
        parts.append(_text(10 + 120 * index, height + 34, word, colour))
    return _svg(max(20 + span * scale, 500), height + 44, parts)


def _colours(take: Take) -> list[str]:
    colours = np.full(len(take.performance), GREY if take.alignment is None else BLUE, dtype="U7")
    if take.alignment is not None:
        colours[take.alignment.wrong[:, 1]] = RED
        colours[take.alignment.extra] = ORANGE
    return list(colours.tolist())


def _missing(take: Take) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """When and where notes are missing, [m, 2] seconds and pitch."""
    position, onset, _, _ = take.beats
    if take.alignment is None or not len(position):
        return np.zeros((0, 2))
    score, index = take.alignment.score, take.alignment.missing
    times = np.interp(score.onset_q[index], position, onset)
    return np.stack((times, score.pitch[index].astype(np.float64)), axis=1)


def _deviations(take: Take) -> Iterable[tuple[float, float, float]]:
    """From where a chord began to where a note of it did, for those more than 30 ms off."""
    if take.alignment is None or not len(take.alignment.matched):
        return []
    written, played = take.alignment.matched.T
    position, onset, _, _ = take.beats
    due = np.interp(take.alignment.score.onset_q[written], position, onset)
    begun, pitch = take.performance.onset_s[played], take.performance.pitch[played]
    far = np.abs(begun - due) > 0.03
    columns = (due[far].tolist(), begun[far].tolist(), pitch[far].tolist())
    return list(zip(*columns, strict=True))


def _box(x: float, y: float, width: float, height: float, colour: str, stroke: str = "none") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{colour}" stroke="{stroke}"/>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
    return f'<line {ends} stroke="{colour}"/>'


def _text(x: float, y: float, text: str, colour: str = "black", weight: str = "normal") -> str:
    style = f'fill="{colour}" font-weight="{weight}" font-family="sans-serif" font-size="12"'
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(shown)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}">'
    ground = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"
