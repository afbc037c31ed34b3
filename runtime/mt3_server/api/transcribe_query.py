"""What a client asks of a transcription, checked before its upload is read.

Contract: `TranscribeQuery.of` takes names and values as they stand in a query string or a form, and
refuses a name that means nothing, one that is given twice, and a value that is out of range.  None
of them is a path or an address.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from mt3_runtime.decoding.search import SearchName
from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import FORMATS
from mt3_runtime.files.midi import MAX_TEMPO, MIN_TEMPO
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.notes.instruments import choose

MOST_TEXT = 2000
"""Characters of a value; names of instruments are compared with all that are known."""

WORDS = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
"""How yes and no are written."""

_LIVE = ("auto_filter", "decoding", "instruments", "exclude", "grammar", "min_confidence")
OPTIONS = (*_LIVE, "smooth", "upstream_quirks")
"""Of a transcription."""

NAMES = (*OPTIONS, "model", "format", "split", "tempo", "deadline")
"""All that may be asked for."""


@dataclass(frozen=True)
class TranscribeQuery:
    """See the module docstring.

    Attributes:
        model: Name of a model of the service; None for its first.
        format: One of `FORMATS`; None if the client did not say.
        split: Whether every stem gets a file, in an archive.
        tempo: Of MIDI files.
        deadline: Seconds until it is given up; None for the service's.
        options: Of `mt3_runtime.request.Options`.
    """

    model: str | None = None
    format: str | None = None
    split: bool = False
    tempo: float = 120.0
    deadline: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, pairs: Iterable[tuple[str, str]], *, names: Iterable[str] = NAMES
    ) -> TranscribeQuery:
        """Checks what is asked for.

        Args:
            pairs: Names and values.
            names: Those that may be given.

        Raises:
            OptionError: One of them is wrong.
        """
        known = tuple(names)
        given: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                raise OptionError(
                    f"There is no option {name[:40]!r}; expected some of {', '.join(known)}."
                )
            if name in given:
                raise OptionError(f"The option {name} is given twice.")
            if len(value) > MOST_TEXT or "\0" in value:
                raise OptionError(f"The option {name} is longer than {MOST_TEXT} characters, or "
                                  "holds a NUL.")  # fmt: skip
            given[name] = value
        options = {name: _option(name, given[name]) for name in OPTIONS if name in given}
        choose(options.get("instruments"), options.get("exclude"))
        deadline = given.get("deadline")
        return cls(
            model=given.get("model"),
            format=_one_of("format", given["format"], FORMATS) if "format" in given else None,
            split=_one_of("split", given.get("split", "none"), ("none", "stems")) == "stems",
            tempo=_number("tempo", given.get("tempo", "120"), MIN_TEMPO, MAX_TEMPO),
            deadline=None if deadline is None else _number("deadline", deadline, 0.1, 86_400.0),
            options=options,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def live_options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a live input, from the values of a JSON object.

    Raises:
        OptionError: One of them is wrong.
    """
    pairs = []
    for name, value in given.items():
        text = str(value).lower() if isinstance(value, bool | int | float) else value
        if not isinstance(text, str):
            raise OptionError(f"The option {name[:40]!r} is no text, number, true or false.")
        pairs.append((name, text))
    return TranscribeQuery.of(pairs, names=_LIVE).options


def _option(name: str, text: str) -> Any:
    if name == "auto_filter":
        return AUTO_FILTERS[_one_of(name, text, tuple(AUTO_FILTERS))]
    if name == "decoding":
        return _one_of(name, text, get_args(SearchName))
    if name == "min_confidence":
        return _number(name, text, 0.0, 1.0)
    if name in ("instruments", "exclude"):
        return text
    return WORDS[_one_of(name, text.lower(), tuple(WORDS))]


def _one_of(name: str, text: str, words: tuple[str, ...]) -> str:
    if text not in words:
        raise OptionError(f"{name}={text[:40]!r} means nothing; expected {', '.join(words)}.")
    return text


def _number(name: str, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise OptionError(f"{name}={text[:40]!r} is no number from {least:g} to {most:g}.")
    return value
