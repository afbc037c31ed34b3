"""Routes of the service: ``/v1/tags`` and ``/v1/genre``.

Contract: see `mt3_runtime.extensions.service_routes`.  Clients name bundles that are installed,
never paths, and get what `mt3 tag` and `mt3 genre` write as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mt3_analysis.genres.genre_detection import EVIDENCE, PUBLISHED, genre_of
from mt3_analysis.networks.listening import samples_of
from mt3_analysis.tagging.instrument_tagging import load_tagger, tags_of
from mt3_runtime.errors import OptionError
from mt3_runtime.models.installed import installed_classifiers

if TYPE_CHECKING:
    from mt3_runtime.extensions.service_routes import RouteRequest

#: Characters of ``lyrics``.
_MAX_LYRICS = 1 << 16


def tags(request: RouteRequest) -> Mapping[str, Any]:
    """Answers which instruments are heard; option ``tagger``: an installed one, or ``none``.

    Raises:
        AudioError: The upload cannot be read.
        BundleError: The tagger is damaged or of another kind.
        OptionError: An option is not known, or has another value.
    """
    chosen = _options(request.options, tagger=_installed_or_none)
    name = chosen.get("tagger")
    tagger = None if name == "none" else load_tagger(name)
    result = request.transcribe()
    return tags_of(result, tagger, samples_of(request.samples), wanted=name != "none").to_dict()


def genre(request: RouteRequest) -> Mapping[str, Any]:
    """Answers the genre; options ``rules``, ``tagger``, ``classifier``, ``lyrics`` (JSON).

    Raises:
        AudioError: The upload cannot be read.
        BundleError: A bundle is damaged or of another kind.
        OptionError: An option is not known, or has another value.
    """
    chosen = _options(
        request.options, rules=_rules, tagger=_installed, classifier=_installed, lyrics=_lyrics
    )
    notes = lambda: request.transcribe().notes  # noqa: E731  called if the rules want notes
    return genre_of(samples_of(request.samples), notes, **chosen).to_dict()


def _options(given: Mapping[str, str], **known: Callable[[str], Any]) -> dict[str, Any]:
    """The values of options that a route has.

    Raises:
        OptionError: One is not known, or has another value.
    """
    for name in given:
        if name not in known:
            raise OptionError(f"There is no option {name!r} here; expected {', '.join(known)}.")
    return {name: known[name](value) for name, value in given.items()}


def _installed_or_none(name: str) -> str:
    return name if name == "none" else _installed(name)


def _installed(name: str) -> str:
    listed = sorted(installed_classifiers())
    if name not in listed:
        raise OptionError(
            f"No bundle {name!r} is installed here; there are {', '.join(listed) or 'none'}."
        )
    return name


def _rules(name: str) -> str:
    if name not in (EVIDENCE, PUBLISHED):
        raise OptionError(f"rules is {name!r}; expected {EVIDENCE} or {PUBLISHED}.")
    return name


def _lyrics(text: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text if len(text) <= _MAX_LYRICS else "")
    except (ValueError, RecursionError) as error:
        raise OptionError(f"lyrics is no JSON of at most {_MAX_LYRICS:,} characters.") from error
    if not isinstance(values, dict):
        raise OptionError("lyrics is no JSON object with 'themes' and 'complexity'.")
    return values
