"""Kinds of music of one stem: what a file of bass, of piano or of drums holds.

Contract: `stem_recipe` says what is played on a stem, with the programs and percussion keys that
belong to it and no others (`mt3_runtime.notes.stems`), so every note of such a piece is a note of
the stem.  Voices have no recipe: the choirs of soundfonts sing one vowel, and a model that learned
from them would know nothing of singers.
"""

from __future__ import annotations

from collections.abc import Mapping

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import Lineup
from mt3_runtime.notes.stems import HIGH, STEMS, Stem, stem_named
from mt3_synthesis.music import MusicConfig

Recipe = tuple[tuple[float, MusicConfig], ...]

SINGERS = "vocals"
"""The stem without music."""

NO_VOCALS = (
    "vocals: no data. Nothing that is made up here sounds like a singer; train this stem on "
    "recordings with labels, with --index."
)
"""What is said where somebody asks for it."""

_SHARES: Mapping[str, tuple[tuple[float, tuple[int, int], tuple[str, ...]], ...]] = {
    # Weight, fewest and most layers, roles: one voice, or a player who does several things.
    "bass": ((0.8, (1, 1), ("bass",)), (0.2, (1, 2), ("bass", "lead"))),
    "synth_lead": ((0.7, (1, 1), ("lead",)), (0.3, (1, 2), ("lead", "keys"))),
    "synth_pad_fx": ((0.6, (1, 1), ("pad",)), (0.4, (1, 2), ("pad", "keys"))),
    "strings_ensemble": ((0.4, (1, 1), ("lead",)), (0.6, (1, 2), ("pad", "lead", "keys"))),
}
"""How the players of a stem play; a stem that is not named plays keys in up to three layers."""

_KEYS = ((1.0, (1, 3), ("keys", "keys", "lead")),)

_EVERY = Lineup().drum_keys

CHAOS = 0.2
"""Probability of unrelated notes of the same instruments: they can only be heard."""

ENSEMBLE = 0.2
"""Share of the pieces in which two players of the stem play at once, as in an orchestra's."""


def stem_recipe(name: str) -> Recipe:
    """Kinds of music of a stem with their weights.

    Args:
        name: One of `mt3_runtime.notes.stems.STEMS`.

    Raises:
        OptionError: There is no such stem, or nothing can be made up for it.
    """
    stem = stem_named(name)
    if name == SINGERS:
        raise OptionError(NO_VOCALS)
    if not stem.lineup.programs:
        keys = None if name != HIGH else tuple(sorted(stem.lineup.drum_keys))
        return ((1.0, MusicConfig((0, 0), drums=1.0, chaos=0.0, drum_keys=keys)),)
    programs = tuple(sorted(stem.lineup.programs))
    shares = _SHARES.get(name, _KEYS)
    alone = [
        (w, MusicConfig((1, 1), layers, drums=0.0, chaos=CHAOS, programs=programs, roles=roles))
        for w, layers, roles in shares
    ]
    together = MusicConfig(
        (2, 2), drums=0.0, chaos=0.0, programs=programs, roles=tuple(shares[-1][2])
    )
    return (*((w * (1.0 - ENSEMBLE), music) for w, music in alone), (ENSEMBLE, together))


def stem_keys(stem: Stem) -> Lineup:
    """The instruments that the recording of a stem is labelled with.

    The file of the drums holds the whole kit, as those of songs and of separators do.
    """
    drums = not stem.lineup.programs and stem.name != HIGH
    return stem.lineup | stem_named(HIGH).lineup if drums else stem.lineup


TRAINED = tuple(stem.name for stem in STEMS if stem.name != SINGERS)
"""Stems that music can be made up for, in the order of `STEMS`."""


def backing(name: str) -> MusicConfig:
    """What the others of a song play: heard faintly in the file of a stem, and never labelled.

    Raises:
        OptionError: There is no such stem.
    """
    others = Lineup() - stem_keys(stem_named(name))
    keys = tuple(sorted(others.drum_keys)) if others.drum_keys != _EVERY else ()
    return MusicConfig(
        (1, 3),
        drums=0.6 if others.drum_keys else 0.0,
        programs=tuple(sorted(others.programs)),
        drum_keys=keys or None,
    )
