"""Random token streams for YourMT3's rules: what a network says, and what it should not.

Few programs, pitches and moments, so that notes meet again within a segment, over segments and
between channels; enough segments that a note can last for more than ten seconds.
"""

from __future__ import annotations

import json
import random

from mt3_runtime.notes.vocabulary import EOS, Event, EventKind, Vocabulary

VOCABULARY = Vocabulary.yourmt3()
CHANNELS = 13

Tokens = list[int]
Recording = list[list[Tokens]]


def token(kind: EventKind, value: int = 0) -> int:
    """Model id of an event."""
    return VOCABULARY.encode(Event(kind, value))


TIE = token(EventKind.TIE)
HELD = [token(EventKind.PROGRAM), token(EventKind.PITCH, 60), TIE, EOS]
"""One note of program 0 goes on, and nothing else happens."""


def recording(rng: random.Random) -> Recording:
    """One recording of one or thirteen channels: segments of channels of tokens."""
    channels, manner = rng.choice([1, 1, CHANNELS]), rng.choice([babble, speak, mumble])
    segments = []
    for _ in range(rng.randrange(1, 9)):
        if rng.random() < 0.3:
            segments.append([HELD] * channels)
        else:
            lengths = [rng.choice([0, 1, 5, 20]) for _ in range(channels)]
            segments.append([manner(rng, length) for length in lengths])
    return segments


def babble(rng: random.Random, length: int) -> Tokens:
    """Any tokens at all, some more often than others."""
    often = [0, EOS, 2, TIE, token(EventKind.VELOCITY, 1), token(EventKind.VELOCITY, 0)]
    often += [token(EventKind.DRUM, 36), token(EventKind.PITCH, 0), token(EventKind.PROGRAM, 0)]
    return [rng.choice([*often, rng.randrange(VOCABULARY.size)]) for _ in range(length)]


def speak(
    rng: random.Random, length: int, *, pitches: int = 3, programs: int = 2, slips: float = 0.05
) -> Tokens:
    """Mostly well-formed: ties, then groups of a time and notes; sometimes a tie or end is missing.

    Args:
        rng: Source of randomness.
        length: Least number of tokens.
        pitches: How many different pitches there are.
        programs: How many different programs there are.
        slips: Probability of a token that says anything, behind each note.
    """
    found: Tokens = [EOS] if rng.random() < 0.03 else []
    for _ in range(rng.randrange(3)):
        found.append(token(EventKind.PROGRAM, rng.randrange(programs)))
        found.append(token(EventKind.PITCH, 60 + rng.randrange(pitches)))
    found += [TIE] * (rng.random() < 0.9)
    now = 0
    while len(found) < length:
        if rng.random() < 0.6:
            now = rng.choice([min(205, now + rng.randrange(40)), rng.randrange(206), 205, 1])
            found.append(token(EventKind.SHIFT, now))
        if rng.random() < 0.15:
            found.append(token(EventKind.DRUM, 36 + rng.randrange(2)))
        else:
            found.append(token(EventKind.PROGRAM, rng.randrange(programs)))
            found.append(token(EventKind.VELOCITY, int(rng.random() < 0.6)))
            found.append(token(EventKind.PITCH, 60 + rng.randrange(pitches)))
        if rng.random() < slips:
            found.append(rng.randrange(VOCABULARY.size))
    return found + [EOS] * (rng.random() < 0.95)


def mumble(rng: random.Random, length: int) -> Tokens:
    """One pitch of one program, or silence: the longest notes, the most coincidences."""
    if rng.random() < 0.3:
        return [TIE, EOS] if rng.random() < 0.8 else [EOS, EOS]
    return speak(rng, length, pitches=1, programs=1, slips=0.0)


if __name__ == "__main__":
    source = random.Random(0)
    print(json.dumps([recording(source) for _ in range(40)]))
