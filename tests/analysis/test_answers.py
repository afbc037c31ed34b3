"""Routes of the service, as the plain functions that they are."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mt3_analysis import answers, genre, tag
from mt3_export.classifiers.classifier_writer import export_classifier
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import OptionError
from mt3_runtime.extensions.service_routes import ROUTE_GROUP, RouteRequest
from tests.classifier_networks import ast_folder, named, wave_folder

GENRES = ("blues", "rock", "jazz", "pop", "metal", "country", "reggae")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(tiny_model, audio):
    def make(**options):
        return RouteRequest(
            Path("upload"),
            options,
            tiny_model,
            lambda rate: load_audio(audio, sr=16000, target_rate=rate),
            lambda **given: tiny_model.transcribe_notes(audio, **given),
        )

    return make


def test_both_are_registered():
    found = {entry.name: entry.load() for entry in entry_points(group=ROUTE_GROUP)}
    assert found["tags"] is answers.tags
    assert found["genre"] is answers.genre


def test_tags_are_those_of_the_library(asked, tiny_model, audio, cache, tmp_path):
    found = answers.tags(asked())
    assert found["tagger"] is None
    assert "No tagger is installed" in json.dumps(found["warnings"])
    assert "No tagger" not in json.dumps(answers.tags(asked(tagger="none"))["warnings"])
    export_classifier(ast_folder(tmp_path / "source"), cache / "classifiers" / "tiny", name="tiny")
    for options in ({}, {"tagger": "tiny"}):
        found = answers.tags(asked(**options))
        assert json.loads(json.dumps(found)) == json.loads(
            json.dumps(tag(audio, sr=16000, model=tiny_model).to_dict())
        )


@pytest.mark.parametrize("rules", ["evidence", "published"])
def test_genres_are_those_of_the_library(asked, tiny_model, audio, cache, tmp_path, rules):
    source = wave_folder(tmp_path / "h", **named(GENRES))
    export_classifier(source, cache / "classifiers" / "tiny", name="tiny")
    lyrics = {"themes": ["rebellion"], "complexity": {}}
    found = answers.genre(asked(rules=rules, classifier="tiny", lyrics=json.dumps(lyrics)))
    expected = genre(audio, sr=16000, rules=rules, model=tiny_model, lyrics=lyrics)
    assert found["all_scores"] == pytest.approx(expected.all_scores)
    assert found["method"] == expected.method
    json.dumps(found)


@pytest.mark.parametrize(
    ("route", "options"),
    [
        ("tags", {"tagger": "nobody"}),
        ("tags", {"tagger": "/etc/passwd"}),
        ("tags", {"rules": "evidence"}),
        ("genre", {"rules": "rules.toml"}),
        ("genre", {"classifier": "../genre"}),
        ("genre", {"tagger": "none"}),
        ("genre", {"lyrics": "["}),
        ("genre", {"lyrics": "[]"}),
        ("genre", {"lyrics": '{"themes": 3}'}),
        ("genre", {"lyrics": " " * (1 << 17)}),
    ],
)
def test_options_that_make_no_sense_are_refused(asked, route, options):
    with pytest.raises(OptionError):
        getattr(answers, route)(asked(**options))
