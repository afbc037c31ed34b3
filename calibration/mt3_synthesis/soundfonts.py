"""Catalogue of sample collections: where they are, their licences, and what they may be used for.

Contract: `SOURCES` names every collection this package uses, and what for.  Each has one role, so
that no sound a model is judged by was ever trained on:

* ``train``: licences that put no condition on what is trained with them (MIT, public domain, CC0);
* ``choice``: never trained on; decides between models during development;
* ``test``: never trained on and never used for a choice; scored at the end.

Nothing is downloaded here.  `find` looks where packages put their files, and in
``<cache>/calibration/sources``; if the collection is absent the error says how to install it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mt3_runtime.errors import MissingDependencyError, OptionError
from mt3_runtime.models.cache import cache_dir


class Role(StrEnum):
    """What a collection may be used for; see the module's docstring."""

    TRAIN = "train"
    CHOICE = "choice"
    TEST = "test"


@dataclass(frozen=True)
class SamplePackage:
    """An npm package with recorded notes of one instrument, named after their pitches.

    Attributes:
        name: Name of the package.
        version: The one this was written for; another one works if its files are named alike.
        program: General MIDI program of the instrument.
        velocity: MIDI velocity at which the notes were played.
    """

    name: str
    version: str
    program: int
    velocity: int = 90

    @property
    def archive(self) -> str:
        """File name that ``npm pack`` gives to it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class SoundSource:
    """A collection of sounds.

    Attributes:
        name: Short name.
        role: What it may be used for.
        licence: SPDX expression, as the package states it.
        credit: Who made it.
        package: Debian package with the soundfont; empty for `samples`.
        files: Names of the soundfont, the first one found counts.
        module: Python package that also carries the soundfont.
        samples: npm packages, instead of a soundfont.
    """

    name: str
    role: Role
    licence: str
    credit: str
    package: str = ""
    files: tuple[str, ...] = ()
    module: str = ""
    samples: tuple[SamplePackage, ...] = ()

    @property
    def install(self) -> str:
        """The command that installs it."""
        if self.package:
            return f"apt-get install {self.package}"
        names = " ".join(f"{sample.name}@{sample.version}" for sample in self.samples)
        return f"npm pack --pack-destination {sources_dir()} {names}"


# The sixteen packages are the sixteen velocity layers of the piano: layer n covers the MIDI
# velocities around 8 n - 4.
_PIANO = tuple(
    SamplePackage(f"@audio-samples/piano-velocity{layer}", "1.0.5", 0, 8 * layer - 4)
    for layer in (5, 8, 11, 14)
)

_TONEJS_1_1_1 = (
    "cello",
    "guitar-electric",
    "guitar-nylon",
    "harmonium",
    "harp",
    "organ",
    "violin",
)
_TONEJS = tuple(
    SamplePackage(
        f"tonejs-instrument-{name}-mp3", "1.1.1" if name in _TONEJS_1_1_1 else "1.1.2", program
    )
    for name, program in {
        "bass-electric": 33,
        "bassoon": 70,
        "cello": 42,
        "clarinet": 71,
        "contrabass": 43,
        "flute": 73,
        "french-horn": 60,
        "guitar-acoustic": 25,
        "guitar-electric": 27,
        "guitar-nylon": 24,
        "harmonium": 20,
        "harp": 46,
        "organ": 16,
        "saxophone": 65,
        "trombone": 57,
        "trumpet": 56,
        "tuba": 58,
        "violin": 40,
        "xylophone": 13,
    }.items()
)

SOURCES: tuple[SoundSource, ...] = (
    SoundSource(
        name="fluidr3mono",
        role=Role.TRAIN,
        licence="MIT",
        credit="Fluid (R3) Mono GM: Frank Wen (2000-2002, 2008), Michael Cowgill (2014-2017), "
        "Ethan Winer, Michael Schorsch",
        package="fluidr3mono-gm-soundfont",
        files=("FluidR3Mono_GM.sf3",),
    ),
    SoundSource(
        name="fluidr3",  # the same recordings as fluidr3mono, in stereo
        role=Role.TRAIN,
        licence="MIT",
        credit="Fluid (R3) GM: Frank Wen (2000-2002, 2008)",
        package="fluid-soundfont-gm",
        files=("FluidR3_GM.sf2",),
    ),
    SoundSource(
        name="musescore",  # built on fluidr3mono; its piano and others are independent
        role=Role.TRAIN,
        licence="MIT AND CC0-1.0",
        credit="MuseScore_General: S. Christian Collins (2018-2021), Michael Cowgill, Frank Wen; "
        "Splendid Grand Piano from AKAI (public domain); Versilian Community Sample Library (CC0)",
        package="musescore-general-soundfont-small",
        files=("MuseScore_General_Lite.sf3", "MuseScore_General.sf3"),
    ),
    SoundSource(
        name="gmbank",
        role=Role.CHOICE,
        licence="LGPL-2.1-or-later",
        credit="sf_GMbank of Csound",
        package="csound-soundfont",
        files=("sf_GMbank.sf2",),
    ),
    SoundSource(
        name="timgm6mb",
        role=Role.TEST,
        licence="GPL-2.0-only",
        credit="TimGM6mb: Tim Brechbill (2004), David Bolton (2010)",
        package="timgm6mb-soundfont",
        files=("TimGM6mb.sf2",),
        module="pretty_midi",
    ),
    SoundSource(
        name="salamander",
        role=Role.TEST,
        licence="CC-BY-3.0",
        credit="Salamander Grand Piano V3: Alexander Holm",
        samples=_PIANO,
    ),
    SoundSource(
        name="tonejs",
        role=Role.TEST,
        licence="CC-BY-3.0",
        credit="tonejs-instruments: samples from many authors, see sample-source-info.txt there",
        samples=_TONEJS,
    ),
)
"""Every collection this package uses."""

FONT_FOLDERS = (
    Path("/usr/share/sounds/sf2"),
    Path("/usr/share/sounds/sf3"),
    Path("/usr/share/soundfonts"),
    Path("/usr/local/share/soundfonts"),
)
"""Where packages put soundfonts."""


def calibration_dir() -> Path:
    """The sounds' part of the cache folder; it need not exist yet."""
    return cache_dir() / "calibration"


def sources_dir() -> Path:
    """Where files may be put that no package installs; it need not exist yet."""
    return calibration_dir() / "sources"


def source_named(name: str) -> SoundSource:
    """The collection of that name.

    Raises:
        OptionError: There is none.
    """
    for source in SOURCES:
        if source.name == name:
            return source
    known = ", ".join(source.name for source in SOURCES)
    raise OptionError(f"there is no collection of sounds {name!r}; expected one of {known}")


def find(source: SoundSource) -> tuple[Path, ...]:
    """The files of a collection: one soundfont, or the archives of the npm packages in order.

    Raises:
        MissingDependencyError: It is not installed; the message says how to install it.
    """
    own = _own_folders()
    if source.samples:
        found = [folder / sample.archive for sample in source.samples for folder in own]
        missing = [sample.archive for sample in source.samples if not own]
        missing += [path.name for path in found if not _is_file(path)]
    else:
        found = [path for path in _places(source) if _is_file(path)][:1]
        missing = [] if found else [source.files[0]]
    if missing:
        place = f"  (or put the file into {own[0]})" if own else ""
        raise MissingDependencyError(
            f"the sounds {source.name!r} are not installed ({missing[0]} is missing); run: "
            f"{source.install}{place}"
        )
    return tuple(found)


def _own_folders() -> list[Path]:
    """`sources_dir`; none for a user without a home, who may still use what packages install."""
    try:
        return [sources_dir()]
    except OptionError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that cannot be looked into
        return False


def _places(source: SoundSource) -> Iterator[Path]:
    folders = [*_own_folders(), *FONT_FOLDERS]
    spec = importlib.util.find_spec(source.module) if source.module else None
    if spec and spec.submodule_search_locations:
        folders += [Path(place) for place in spec.submodule_search_locations]
    for name in source.files:
        for folder in folders:
            yield folder / name
