"""Writes performances as MIDI files, with their pedals.

Contract: times come back within half a millisecond, the pitches, velocities and pedals as they are.
"""

from __future__ import annotations

import io

import mido

from mt3_analysis.assessment.performance import Performance

_TICKS_PER_SECOND = 2000  # 1000 a quarter at 120 quarters a minute


def midi_bytes(performance: Performance) -> bytes:
    """The MIDI file of a performance."""
    events: list[tuple[int, int, mido.Message]] = []
    columns = (performance.onset_s, performance.offset_s, performance.pitch, performance.velocity)
    for on, off, pitch, velocity in zip(*(column.tolist() for column in columns), strict=True):
        start = round(on * _TICKS_PER_SECOND)
        end = max(round(off * _TICKS_PER_SECOND), start + 1)
        events.append((start, 2, mido.Message("note_on", note=pitch, velocity=velocity)))
        events.append((end, 0, mido.Message("note_off", note=pitch)))
    for control, curve in performance.pedals.items():
        for time, value in zip(curve.time_s.tolist(), curve.value.tolist(), strict=True):
            message = mido.Message("control_change", control=control, value=value)
            events.append((max(round(time * _TICKS_PER_SECOND), 0), 1, message))
    track, now = mido.MidiTrack(), 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=tick - now))
        now = tick
    stream = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=_TICKS_PER_SECOND // 2, tracks=[track]).save(file=stream)
    return stream.getvalue()
