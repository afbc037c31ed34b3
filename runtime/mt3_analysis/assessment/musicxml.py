"""Reads the notes of MusicXML scores, plain (.musicxml, .xml) and compressed (.mxl).

Contract: bounded, and nothing is ever fetched or expanded: declarations of entities are refused, an
archive is read up to `MAX_BYTES`.  What comes out are notes in quarters from the beginning, ties
joined, each measure once (`XmlScore.repeated_order` says how repeats are played).  The libraries
that read whole scores bring SciPy, lxml and a schema with them, far more than is needed here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from mt3_analysis.assessment.performance import read_bounded
from mt3_runtime.errors import OptionError

MAX_BYTES = 64 << 20
"""Largest score, unpacked; an hour of piano has about 20 MB."""

MAX_ELEMENTS = 4_000_000
"""Most elements of a score; a note has about twelve."""

MAX_DEPTH = 64
"""Deepest nesting; MusicXML has 12 levels."""

_CONTAINER = "META-INF/container.xml"
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


class XmlNote(NamedTuple):
    """A note as written.

    Attributes:
        measure: Index of its measure.
        start: Quarters from the beginning of the measure.
        length: Quarters; 0 for a grace note.
        pitch: MIDI pitch, as it sounds.
        tied: Whether it goes on from the note before it, not struck again.
        ornament: Whether a trill, mordent or turn stands over it.
    """

    measure: int
    start: float
    length: float
    pitch: int
    tied: bool
    ornament: bool


@dataclass
class XmlScore:
    """What a file holds.

    Attributes:
        notes: Of all parts.
        lengths: Quarters of each measure.
        forward: Measures at which a repeat begins.
        backward: Measures at which one ends, and how often in all it is played.
        endings: Measures of an ending, and on which rounds it is played.
    """

    notes: list[XmlNote] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    forward: set[int] = field(default_factory=set)
    backward: dict[int, int] = field(default_factory=dict)
    endings: dict[int, frozenset[int]] = field(default_factory=dict)

    def repeated_order(self) -> list[int]:
        """The measures in the order in which they are played with all repeats."""
        order: list[int] = []
        start, place, turn = 0, 0, 1
        most = 64 * max(len(self.lengths), 1)
        while place < len(self.lengths) and len(order) < most:
            if place in self.forward and place != start:
                start, turn = place, 1
            if turn in self.endings.get(place, {turn}):
                order.append(place)
                if place in self.backward and turn < self.backward[place]:
                    place, turn = start, turn + 1
                    continue
                if place in self.backward:
                    start, turn = place + 1, 1
            place += 1
        return order


def read_musicxml(path: Path) -> XmlScore:
    """Reads a score.

    Raises:
        OptionError: It cannot be read, is no partwise MusicXML, too large, or declares entities.
    """
    data = read_bounded(path, "a score as MusicXML", MAX_BYTES)
    try:
        root = _parse(_unpacked(data) if data.startswith(b"PK") else data)
        if root.tag != "score-partwise":
            raise OptionError(f"its root is <{root.tag}>; expected <score-partwise>")  # noqa: TRY301
        return _score(root)
    except (OptionError, expat.ExpatError, ValueError, zipfile.BadZipFile, NotImplementedError,
            RuntimeError, OverflowError, EOFError) as error:  # fmt: skip
        reason = str(error).rstrip(".")
        raise OptionError(f"{str(path)!r} is no readable MusicXML score: {reason}.") from error


def _unpacked(data: bytes) -> bytes:
    """The score inside a .mxl archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if _CONTAINER not in names:
            raise OptionError(f"the archive has no {_CONTAINER}")
        files = _parse(_member(archive, _CONTAINER)).iter("rootfile")
        name = next((file.get("full-path", "") for file in files), "")
        if name not in names:
            raise OptionError(f"{_CONTAINER} names {name!r}, which is not in the archive")
        return _member(archive, name)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        data = member.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OptionError(f"{name} unpacks to more than {MAX_BYTES >> 20} MB")
    return data


def _parse(data: bytes) -> Element:
    """The tree of a document without entities of its own."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    elements = depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal elements, depth
        elements, depth = elements + 1, depth + 1
        if elements > MAX_ELEMENTS or depth > MAX_DEPTH:
            raise OptionError(f"more than {MAX_ELEMENTS:,} elements, or {MAX_DEPTH} levels")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def declares(*_: object) -> None:
        raise OptionError("it declares entities, which no score needs")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = declares
    parser.Parse(data, True)  # noqa: FBT003
    return builder.close()


def _score(root: Element) -> XmlScore:
    score = XmlScore()
    for part in root.iter("part"):
        divisions, transposed = 1.0, 0
        for index, measure in enumerate(part.iter("measure")):
            if index == len(score.lengths):
                score.lengths.append(0.0)
            _repeats(score, index, measure)
            reader = _Measure(index, divisions, transposed)
            score.notes += reader.read(measure)
            divisions, transposed = reader.divisions, reader.transposed
            score.lengths[index] = max(score.lengths[index], reader.longest)
    return score


def _repeats(score: XmlScore, index: int, measure: Element) -> None:
    for barline in measure.iter("barline"):
        repeat, ending = barline.find("repeat"), barline.find("ending")
        if repeat is not None and repeat.get("direction") == "forward":
            score.forward.add(index)
        elif repeat is not None:
            score.backward[index] = min(max(int(repeat.get("times") or 2), 2), 16)
        if ending is not None and ending.get("type") == "start":
            numbers = (ending.get("number") or "1").replace(" ", "").split(",")
            score.endings[index] = frozenset(int(n) for n in numbers if n.isdecimal())
    before = score.endings.get(index - 1)
    if before and index not in score.endings and not _ended(score, index - 1):
        score.endings[index] = before


def _ended(score: XmlScore, index: int) -> bool:
    """Whether an ending is over behind a measure; a last one has one measure here."""
    first = 1 in score.endings[index]
    return index in score.backward or not first


class _Measure:
    """Reads a measure, with what holds on from one to the next."""

    def __init__(self, index: int, divisions: float, transposed: int) -> None:
        self.index, self.divisions, self.transposed = index, divisions, transposed
        self.now = self.longest = self._chord = 0.0

    def read(self, measure: Element) -> Iterator[XmlNote]:
        for item in measure:
            if item.tag == "attributes":
                self._attributes(item)
            elif item.tag == "backup":
                self.now = max(0.0, self.now - self._length(item))
            elif item.tag == "forward":
                self._move(self._length(item))
            elif item.tag == "note":
                yield from self._note(item)

    def _attributes(self, item: Element) -> None:
        self.divisions = float(item.findtext("divisions") or self.divisions)
        if not 0.0 < self.divisions < 1e6:
            raise OptionError(f"divisions is {self.divisions}; expected ticks of a quarter")
        transpose = item.find("transpose")
        if transpose is not None:
            octaves = int(float(transpose.findtext("octave-change") or 0))
            self.transposed = int(float(transpose.findtext("chromatic") or 0)) + 12 * octaves

    def _note(self, item: Element) -> Iterator[XmlNote]:
        grace = item.find("grace") is not None
        length = 0.0 if grace else self._length(item)
        start = self._chord if item.find("chord") is not None else self.now
        pitch = item.find("pitch")
        if pitch is not None and item.find("cue") is None:
            step, octave = pitch.findtext("step") or "", pitch.findtext("octave") or ""
            alter = round(float(pitch.findtext("alter") or 0))
            height = 12 * (int(octave) + 1) + _STEPS[step] + alter if step in _STEPS else -1
            height += self.transposed
            if not 0 <= height <= 127:
                raise OptionError(f"a pitch is {step}{octave}; expected one of a piano")
            tied = any(tie.get("type") == "stop" for tie in item.iter("tie"))
            marks = item.find("notations/ornaments")
            yield XmlNote(self.index, start, length, height, tied, marks is not None)
        if item.find("chord") is None:
            self._chord = self.now
            self._move(length)

    def _length(self, item: Element) -> float:
        length = float(item.findtext("duration") or 0.0) / self.divisions
        if not 0.0 <= length < 1e4:
            raise OptionError(f"a duration is {length} quarters")
        return length

    def _move(self, length: float) -> None:
        self.now += length
        self.longest = max(self.longest, self.now)
