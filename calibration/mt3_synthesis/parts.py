"""Composes the parts of a piece: chords, arpeggios, melodies, bass lines, pads, drums.

Contract: a `Song` is what the players agree on (key, chords, tempo, feeling for time); a function
of type `Style` turns it into the notes of one layer of one part.  All draw from the song's
generator, so the order of calls matters and nothing else does.

The standard library's generator is used: drawing single numbers is most of the work here, and is
ten times as fast with it as with NumPy's.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

from mt3_runtime.notes.note import Note

SCALES = (
    (0, 2, 4, 5, 7, 9, 11),  # major
    (0, 2, 3, 5, 7, 8, 10),  # minor
    (0, 2, 3, 5, 7, 9, 10),  # Dorian
    (0, 2, 4, 5, 7, 9, 10),  # Mixolydian
    (0, 2, 3, 5, 7, 8, 11),  # harmonic minor
    (0, 2, 4, 7, 9),  # major pentatonic
    (0, 3, 5, 6, 7, 10),  # blues
)
"""Semitones above the root."""

LOOPS = ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 3), (5, 3, 0, 4), (1, 4, 0, 0), (0, 6, 5, 4))
"""Common progressions, as degrees of the scale."""

DRUMS = "drums"

SHORTEST = 0.04
"""Seconds; nobody plays shorter notes."""

LEADS = (40, 40, 40, 41, 42, 56, 57, 60, 64, 65, 66, 68, 71, 73, 73, 74, 75, 52, 53, 80, 81, 11, 22)
"""Programs of melodies; named several times what is to be heard often."""

PROGRAMS: dict[str, tuple[int, ...]] = {
    "keys": (0,) * 7 + (1, 2, 4, 4, 5, 6, 7, 8, 11, 12, 13, 16, 17, 19, 21)
    + (24, 24, 25, 25, 25, 26, 27, 27, 28, 29, 30, 45, 46, 104, 105, 107, 108),
    "lead": (*LEADS, 0, 25, 26, 27, 29, 30, 9, 69, 70, 72, 79),
    "bass": (32, 33, 33, 33, 34, 34, 35, 36, 38, 39, 43, 58),
    "pad": (48, 48, 49, 50, 51, 52, 44, 61, 16, 18, 19, 20, 88, 89, 90, 95),
}  # fmt: skip
"""General MIDI programs by role."""

RANGES: dict[range, tuple[int, int]] = {
    range(8): (21, 108),  # pianos
    range(8, 16): (55, 100),  # chromatic percussion
    range(16, 24): (36, 96),  # organs
    range(24, 32): (40, 88),  # guitars
    range(32, 40): (26, 60),  # basses
    range(40, 41): (55, 100),  # violin
    range(41, 42): (48, 88),  # viola
    range(42, 43): (36, 79),  # cello
    range(43, 44): (26, 60),  # double bass
    range(44, 56): (36, 92),  # strings, choirs
    range(56, 57): (54, 86),  # trumpet
    range(57, 58): (40, 72),  # trombone
    range(58, 59): (28, 58),  # tuba
    range(59, 64): (41, 82),  # horn, brass
    range(64, 66): (49, 88),  # soprano, alto saxophone
    range(66, 68): (38, 76),  # tenor, baritone saxophone
    range(68, 70): (53, 90),  # oboe, English horn
    range(70, 71): (34, 75),  # bassoon
    range(71, 72): (50, 91),  # clarinet
    range(72, 80): (60, 96),  # flutes
    range(80, 128): (36, 96),
}
"""Lowest and highest pitch by program: what the instrument can play, or nearly."""

_RANGE_OF = {program: limits for programs, limits in RANGES.items() for program in programs}

BEATS_PER_BAR = 4

KICKS, SNARES = (36, 36, 36, 35), (38, 38, 38, 40, 37, 39)
TIMES = (42, 42, 42, 42, 51, 51, 46, 44, 53, 59, 70, 54, 82)  # what keeps the time, hat or ride
TOMS = (41, 43, 45, 47, 48, 50)
CRASHES = (49, 49, 57, 55, 52)
PERCUSSION = (54, 56, 58, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 75, 76, 77, 39, 37)
GROOVES: dict[str, tuple[str, str]] = {  # sixteenths of a bar: kick, snare
    "rock": ("x.......x.......", "....x.......x..."),
    "pop": ("x.....x.x.......", "....x.......x..."),
    "four": ("x...x...x...x...", "....x.......x..."),
    "funk": ("x..x..x...x..x..", "....x..x.x..x..x"),
    "half": ("x.........x.....", "........x......."),
    "reggae": ("........x.......", "........x......."),
    "break": ("x.x.......xx....", "....x..x.x..x..x"),
    "fast": ("x...x...x...x...", "..x...x...x...x."),
    "none": ("................", "................"),
}

Style = Callable[["Song", int], list[Note]]


class Song:
    """What the players of a piece agree on.

    Args:
        rng: Source of all decisions.
        seconds: Length of the piece.
        steady: No rubato, as with drums.
        rests: Probability that a part pauses for a bar.
    """

    def __init__(
        self, rng: random.Random, seconds: float, *, steady: bool, rests: float = 0.0
    ) -> None:
        self.rng = rng
        self.seconds = seconds
        self.rests = rests
        self.beat = 60.0 / rng.uniform(52.0, 190.0)
        self.beats = seconds / self.beat
        self.root = rng.randrange(12)
        self.scale = rng.choices(SCALES, (6, 5, 2, 2, 2, 2, 1))[0]
        self.jitter = rng.choice((0.0, 0.003, 0.008, 0.015))
        self.swing = rng.choice((0.0, 0.0, 0.0, 0.0, 0.1, 1 / 6))
        self._period = rng.uniform(3.0, 16.0)
        # In beats; the tempo changes by up to the drawn share.
        change = 0.0 if steady or rng.random() < 0.5 else rng.uniform(0.05, 0.3)
        self._rubato = change * self._period / math.tau
        self._phase = rng.uniform(0.0, math.tau)
        self._chords = self._progression()
        self._per_chord = rng.choice((1.0, 2.0, 2.0, 4.0, 4.0))

    def at(self, beat: float) -> float:
        """Seconds of a beat: with swing and rubato."""
        whole = math.floor(beat)
        if self.swing and 0.4 < beat - whole < 0.6:
            beat += self.swing
        beat += self._rubato * math.sin(math.tau * beat / self._period + self._phase)
        return beat * self.beat

    def played(self, beat: float) -> float:
        """Seconds at which a human hits a beat."""
        return self.at(beat) + self.rng.gauss(0.0, self.jitter)

    def chord(self, beat: float) -> tuple[int, ...]:
        """Degrees of the chord at a beat, the root first."""
        return self._chords[int(beat / self._per_chord) % len(self._chords)]

    def pitch(self, degree: int, octave: int) -> int:
        """MIDI pitch of a degree of the scale; degree 0 in octave 4 is the root from C4 to B4."""
        octaves, step = divmod(degree, len(self.scale))
        return 12 * (octave + 1 + octaves) + self.root + self.scale[step]

    def rhythm(self, density: float) -> list[tuple[float, float]]:
        """Beats on which a part plays, each with the time to the next: a pattern, varied."""
        rng = self.rng
        grid = rng.choices((1.0, 0.5, 1 / 3, 0.25), (3, 9, 2, 5))[0]
        slots = round(BEATS_PER_BAR * rng.choice((1, 2)) / grid)
        pattern = [
            rng.random() < density * (1.6 if slot * grid % 1.0 == 0.0 else 0.8)
            for slot in range(slots)
        ]
        pattern[0] |= rng.random() < 0.8
        beats, resting = [], False
        for count in range(math.ceil(self.beats / grid)):
            if count % round(BEATS_PER_BAR / grid) == 0:
                resting = rng.random() < self.rests
            if not resting and pattern[count % slots] != (rng.random() < 0.08):
                beats.append(count * grid)
        ends = [*beats[1:], beats[-1] + max(grid, 1.0)] if beats else []
        return [
            (beat, min(end - beat, BEATS_PER_BAR)) for beat, end in zip(beats, ends, strict=True)
        ]

    def _progression(self) -> list[tuple[int, ...]]:
        rng = self.rng
        if len(self.scale) == 7 and rng.random() < 0.6:
            roots = list(rng.choice(LOOPS))
        else:
            roots = [rng.randrange(len(self.scale))]
            while len(roots) < 8:
                roots.append(roots[-1] + rng.choice((1, 2, 3, -1, -2, 4)))
        fourths = rng.random() * 0.5
        return [
            (root, root + 2, root + 4, root + 6) if rng.random() < fourths else
            (root, root + 2, root + 4)
            for root in (root % len(self.scale) for root in roots)
        ]  # fmt: skip


class _Player:
    """Writes notes of one instrument, within its range, each as loud as the player feels."""

    def __init__(self, song: Song, program: int, loudness: tuple[float, float]) -> None:
        self._song, self._program = song, program
        self._level = song.rng.uniform(*loudness)
        self._swell = song.rng.choice((0.0, 0.0, 6.0, 14.0))
        self._low, self._high = _RANGE_OF[program]
        self.notes: list[Note] = []

    def play(self, beat: float, beats: float, pitch: int, accent: float = 0.0) -> None:
        song = self._song
        onset = song.played(beat)
        length = max(SHORTEST, song.at(beat + beats) - song.at(beat))
        loud = self._level + self._swell * math.sin(beat * 0.4) + accent + song.rng.gauss(0.0, 6.0)
        velocity = min(127, max(12, round(loud)))
        key = folded(pitch, self._low, self._high)
        self.notes.append(Note(onset, onset + length, key, velocity, self._program))


def folded(pitch: int, low: int, high: int) -> int:
    """The pitch, moved by octaves into ``low..high``, which spans an octave or more."""
    if pitch < low:
        return pitch + 12 * -((pitch - low) // 12)
    return pitch - 12 * -((high - pitch) // 12) if pitch > high else pitch


def range_of(program: int) -> tuple[int, int]:
    """Lowest and highest pitch of an instrument."""
    return _RANGE_OF[program]


def styles(rng: random.Random, role: str, layers: int) -> list[Style]:
    """What a player of a role does, ``layers`` things at once."""
    ways: Sequence[Style] = STYLES[role]
    if layers > 1:  # a player who does several things at once is a soloist, who may do anything
        ways = (chords, arpeggio, melody, melody, bass, runs)
    return rng.sample(ways, min(layers, len(ways)))


def chords(song: Song, program: int) -> list[Note]:
    """Chords on a rhythm, struck or strummed."""
    rng = song.rng
    player = _Player(song, program, (40.0, 108.0))
    octave, size = rng.randint(2, 4), rng.randint(2, 5)
    hold = rng.choice((0.25, 0.6, 0.95, 0.95, 1.3))
    strum = rng.choice((0.0, 0.0, 0.02, 0.05))
    for beat, beats in song.rhythm(rng.uniform(0.25, 0.75)):
        degrees = song.chord(beat)
        degrees = (*degrees, *(degree + len(song.scale) for degree in degrees))[:size]
        turn = rng.randrange(3)  # inversion
        for place, degree in enumerate(degrees):
            up = octave + (place < turn)
            player.play(beat + strum * place, beats * hold, song.pitch(degree, up))
    return player.notes


def arpeggio(song: Song, program: int) -> list[Note]:
    """Broken chords, with or without a pedal."""
    rng = song.rng
    player = _Player(song, program, (40.0, 105.0))
    grid, octave = rng.choice((0.5, 0.5, 0.25, 1 / 3)), rng.randint(2, 4)
    pedal = rng.random() < 0.4
    order = rng.sample(range(6), rng.randint(3, 6))
    if rng.random() < 0.5:
        order.sort()
    for count in range(math.ceil(song.beats / grid)):
        beat = count * grid
        chord = song.chord(beat)
        high, place = divmod(order[count % len(order)], 3)
        length = 2.0 - beat % 2.0 if pedal else grid * rng.uniform(0.5, 1.1)
        player.play(beat, length, song.pitch(chord[place], octave + high))
    return player.notes


def melody(song: Song, program: int) -> list[Note]:
    """One voice that mostly moves by steps; sometimes a second one in parallel."""
    rng = song.rng
    player = _Player(song, program, (55.0, 115.0))
    octave, degree = rng.randint(3, 5), rng.randrange(7)
    legato = rng.choice((0.5, 0.8, 0.97, 1.0, 1.03))
    second = rng.choice((0, 0, 0, 0, 2, 5, -7))
    for beat, beats in song.rhythm(rng.uniform(0.3, 0.95)):
        degree += rng.choices((-4, -2, -1, 0, 1, 2, 4, 7), (1, 2, 5, 2, 5, 2, 1, 0.5))[0]
        degree = max(-4, min(14, degree))
        chromatic = rng.random() < 0.05
        player.play(beat, beats * legato, song.pitch(degree, octave) + chromatic)
        if second:
            player.play(beat, beats * legato, song.pitch(degree + second, octave))
    return player.notes


def runs(song: Song, program: int) -> list[Note]:
    """Fast even notes: scales up and down, turns, repetitions."""
    rng = song.rng
    player = _Player(song, program, (50.0, 112.0))
    grid = rng.choice((0.5, 0.25, 0.25, 1 / 6))
    while grid * song.beat < 0.07:  # nobody plays more than 14 notes a second
        grid *= 2.0
    octave, degree, step = rng.randint(3, 4), 0, 1
    length = grid * rng.choice((0.5, 0.9, 1.0, 1.1))
    for count in range(math.ceil(song.beats / grid)):
        if rng.random() < 0.15:
            step = rng.choice((1, -1, 2, -2, 0))
        degree += step
        if not -3 <= degree <= 15:
            degree, step = max(-3, min(15, degree)), -step
        player.play(count * grid, length, song.pitch(degree, octave))
    return player.notes


def bass(song: Song, program: int) -> list[Note]:
    """Roots of the chords, and notes that lead to them."""
    rng = song.rng
    player = _Player(song, program, (60.0, 115.0))
    octave, hold = rng.choice((1, 2, 2)), rng.choice((0.4, 0.8, 0.95, 1.0))
    for beat, beats in song.rhythm(rng.uniform(0.3, 0.9)):
        degree = song.chord(beat)[0] + rng.choice((0, 0, 0, 0, 2, 4, 7, -1))
        player.play(beat, beats * hold, song.pitch(degree, octave), accent=8.0 * (beat % 4 == 0))
    return player.notes


def pad(song: Song, program: int) -> list[Note]:
    """Chords held for half a bar to two bars."""
    rng = song.rng
    player = _Player(song, program, (35.0, 95.0))
    octave, step = rng.randint(2, 4), rng.choice((2, 4, 4, 8))
    for start in range(0, math.ceil(song.beats), step):
        length = step * rng.uniform(0.85, 1.02)
        for degree in song.chord(start):
            player.play(start, length, song.pitch(degree, octave))
    return player.notes


def chaos(song: Song, program: int) -> list[Note]:
    """Notes and clusters that have nothing to do with each other."""
    rng = song.rng
    low, high = _RANGE_OF[program]
    rate, spread = rng.uniform(0.8, 8.0), rng.uniform(0.3, 0.9)
    notes, onset = [], rng.expovariate(rate)
    while onset < song.seconds:
        for _ in range(rng.choices((1, 2, 3, 4), (8, 2, 1, 1))[0]):
            length = 0.05 + rng.lognormvariate(-1.1, spread)
            pitch, velocity = rng.randint(low, high), rng.randint(25, 122)
            notes.append(Note(onset, onset + length, pitch, velocity, program))
        onset += rng.expovariate(rate)
    return notes


STYLES: dict[str, tuple[Style, ...]] = {
    "keys": (chords, chords, arpeggio, arpeggio, runs, melody),
    "lead": (melody, melody, melody, runs),
    "bass": (bass,),
    "pad": (pad,),
}
"""What players of a role may do; twice what they do often."""


def drums(song: Song) -> list[Note]:
    """A groove with what keeps the time, ghost notes, fills and percussion."""
    rng = song.rng
    level = rng.uniform(62.0, 115.0)
    kick, snare, time = rng.choice(KICKS), rng.choice(SNARES), rng.choice(TIMES)
    patterns = _groove(rng, kick, snare)
    grid = rng.choice((0.5, 0.5, 0.25, 1.0, 1 / 3))
    hits: list[tuple[float, int, float]] = []
    for bar in range(math.ceil(song.beats / BEATS_PER_BAR)):
        start = float(bar * BEATS_PER_BAR)
        for key, pattern in patterns:
            hits += [(start + slot / 4, key, 0.0) for slot in pattern if rng.random() < 0.96]
        for count in range(round(BEATS_PER_BAR / grid)):
            if rng.random() < 0.93:
                key = time if rng.random() < 0.92 else rng.choice((42, 44, 46, 51))
                hits.append((start + count * grid, key, -14.0 + 8.0 * (count % 2 == 0)))
        if rng.random() < 0.25:
            hits.append((start, rng.choice(CRASHES), 8.0))
        if rng.random() < 0.25:
            hits += _fill(rng, start)
    return [_hit(song, *hit, level) for hit in hits]


def _groove(rng: random.Random, kick: int, snare: int) -> list[tuple[int, list[int]]]:
    """Percussion keys with the sixteenths of a bar on which they sound."""
    lines = GROOVES[rng.choice(tuple(GROOVES))]
    patterns = [
        (key, [slot for slot in range(16) if (line[slot] == "x") != (rng.random() < 0.05)])
        for key, line in zip((kick, snare), lines, strict=True)
    ]
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        slots = [slot for slot in range(16) if rng.random() < 0.3]
        patterns.append((rng.choice(PERCUSSION), slots))
    return patterns


def _fill(rng: random.Random, bar: float) -> list[tuple[float, int, float]]:
    """A fill on toms and snare at the end of a bar."""
    first = rng.choice((8, 12, 12, 14))
    keys = itertools.chain(sorted(rng.choices(TOMS, k=16), reverse=True))
    return [
        (bar + slot / 4, rng.choice((38, key, key)), 4.0)
        for slot, key in zip(range(first, 16), keys, strict=False)
        if rng.random() < 0.85
    ]


def _hit(song: Song, beat: float, key: int, accent: float, level: float) -> Note:
    onset = song.played(beat)
    velocity = min(127, max(15, round(level + accent + song.rng.gauss(0.0, 11.0))))
    return Note(onset, onset + 0.05, key, velocity, is_drum=True)
