"""Genres: published figures that follow from the published rules, and the evidence ensemble."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import soundfile

from mt3_analysis import detect_genre_hybrid, genre
from mt3_analysis.genres import genre_instruments
from mt3_analysis.genres.evidence_ensemble import EvidenceRules, boosts, combine, read_rules
from mt3_analysis.genres.genre_command import GenreCommand
from mt3_analysis.genres.heuristic_rules import HEURISTICS, heuristic_points
from mt3_analysis.genres.published_ensemble import (
    boosts_of,
    genres_of,
    heuristic_result,
    instruments_of,
    published_result,
)
from mt3_analysis.genres.sonic_features import RATE, sonic_features
from mt3_export.classifiers.classifier_writer import export_classifier
from mt3_runtime import cli
from mt3_runtime.errors import AudioError, BundleNotFoundError, OptionError, ResultWarning
from mt3_runtime.notes.note import Note
from tests.classifier_networks import ast_folder, named, wave_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


#: What is printed of the fiddle song, and the rest as it must be for its figures to follow.
POINTS = {
    "Hip-Hop/Rap": 90,
    "Rock": 75,
    "Electronic/EDM": 70,
    "Pop": 60,
    "Country": 30,
    "Jazz/Blues": 30,
    "Reggae/Dancehall": 30,
    "Indie/Alternative": 20,
    "Metal": 10,
}
ML = {"Hip-Hop/Rap": 0.619, "Country": 0.034, "Pop": 0.2, "Rock": 0.147}
HEARD = {"violin": 0.0352, "harmonica": 0.0118, "drums": 0.0121, "banjo": 0.0018}
HEARD["acoustic_guitar"] = 0.001


def published(instruments, points=None, ml=None):
    heuristic = {"all_scores": POINTS if points is None else points}
    return published_result(heuristic, ML if ml is None else ml, instruments, {})


def test_the_boosts_of_the_fiddle_song():
    found = boosts_of(HEARD)
    assert found == pytest.approx(
        {
            "Country": 0.1526,
            "Bluegrass": 0.1056,
            "Folk": 0.0528,
            "Jazz/Blues": 0.0083,
            "Rock": 0.0048,
        },
        abs=5e-5,
    )
    assert sum(found.values()) == pytest.approx(0.3241, abs=5e-5)


def test_the_published_figures_of_the_fiddle_song():
    found = published(HEARD)
    scores = found["all_scores"]
    assert found["primary_genre"] == "Country"
    assert scores["Country"] == pytest.approx(24.0, abs=0.05)
    assert scores["Hip-Hop/Rap"] == pytest.approx(23.1, abs=0.05)
    assert scores["Bluegrass"] == pytest.approx(14.58, abs=0.01)
    assert scores["Folk"] == pytest.approx(7.3, abs=0.05)
    assert sum(scores.values()) == pytest.approx(100, abs=0.1)
    assert [each["genre"] for each in found["predictions"]] == [
        "Country",
        "Hip-Hop/Rap",
        "Bluegrass",
    ]
    assert [f"{each['confidence']:.0f}" for each in found["predictions"]] == ["24", "23", "15"]
    assert found["method"] == "hybrid_ml_instrument"
    assert found["components"]["heuristic"] == POINTS


def test_without_instruments_the_song_is_hip_hop():
    assert published({})["primary_genre"] == "Hip-Hop/Rap"


def test_bluegrass_follows_from_the_violin_alone():
    spread = {f"Genre {i}": 0.1 for i in range(10)}
    for ml in (ML, spread):
        for points in (POINTS, {"Metal": 100}):
            found = published(HEARD, points, ml)["all_scores"]["Bluegrass"]
            assert found == pytest.approx(14.58, abs=0.01)


@pytest.mark.parametrize(
    ("instrument", "threshold", "genres"),
    [
        ("violin", 0.01, {"Country", "Bluegrass", "Folk"}),
        ("acoustic_guitar", 0.005, {"Country", "Folk"}),
        ("harmonica", 0.003, {"Country", "Jazz/Blues"}),
        ("drums", 0.005, {"Rock"}),
    ],
)
def test_thresholds_are_cliffs(instrument, threshold, genres):
    assert boosts_of({instrument: threshold - 0.0001}) == {}
    assert boosts_of({instrument: threshold}) == {}
    assert set(boosts_of({instrument: threshold + 0.0001})) == genres


def test_banjo_and_electric_guitar_have_no_published_rule():
    assert boosts_of({"banjo": 0.9, "electric_guitar": 0.9}) == {}


@pytest.mark.parametrize(
    ("scores", "printed"),
    [((90, 75, 70), (38.3, 31.9, 29.8)), ((65, 55, 35), (41.9, 35.5, 22.6))],
)
def test_confidences_of_the_fallback_are_shares_of_the_best_three(monkeypatch, scores, printed):
    names = ("Hip-Hop/Rap", "Rock", "Electronic/EDM")
    points = dict(zip(names, scores, strict=True))
    monkeypatch.setattr(
        "mt3_analysis.genres.published_ensemble.heuristic_points",
        lambda *_: {**points, "Pop": 10, "Metal": 0},
    )
    found = heuristic_result({})
    assert tuple(each["confidence"] for each in found["predictions"]) == printed
    assert "method" not in found
    assert "Metal" not in found["all_scores"]


NEUTRAL = {
    "tempo": 10.0,
    "energy": 0.65,
    "danceability": 0.4,
    "valence": 0.4,
    "acousticness": 0.9,
    "loudness": -10.0,
    "spectral_centroid_mean": 3600.0,
}
STEPS = [
    ("Hip-Hop/Rap", "tempo", [(79.9, 0), (80, 30), (140, 30), (140.01, 20)]),
    ("Pop", "tempo", [(99.9, 0), (100, 30), (130, 30), (130.1, 0)]),
    ("Rock", "tempo", [(99.9, 0), (100, 25), (140, 25), (140.1, 0)]),
    ("R&B/Soul", "tempo", [(69.9, 0), (70, 30), (110, 30), (110.1, 0)]),
    ("Country", "tempo", [(89.9, 0), (90, 25), (130, 25), (130.1, 0)]),
    ("Jazz/Blues", "tempo", [(59.9, 0), (60, 20), (120, 20), (120.01, 0)]),
    ("Reggae/Dancehall", "tempo", [(59.9, 0), (60, 30), (90, 30), (90.1, 0)]),
    ("Metal", "tempo", [(79.9, 20), (80, 0), (130, 0), (130.1, 20)]),
    ("Electronic/EDM", "acousticness", [(0.299, 30), (0.3, 0)]),
    ("Rock", "acousticness", [(0.29, 0), (0.3, 25), (0.6, 25), (0.61, 0)]),
    ("Indie/Alternative", "acousticness", [(0.29, 0), (0.3, 25), (0.7, 25), (0.71, 0)]),
    ("Country", "acousticness", [(0.5, 0), (0.501, 35)]),
    ("Jazz/Blues", "acousticness", [(0.6, 0), (0.601, 30)]),
    ("Classical/Instrumental", "acousticness", [(0.8, 0), (0.801, 50)]),
    ("Metal", "acousticness", [(0.199, 10), (0.2, 0)]),
    ("Rock", "energy", [(0.7, 0), (0.701, 30)]),
    ("Metal", "energy", [(0.8, 0), (0.801, 35)]),
    ("Jazz/Blues", "energy", [(0.599, 20), (0.6, 0)]),
    ("Indie/Alternative", "energy", [(0.39, 0), (0.4, 25), (0.7, 25), (0.701, 0)]),
    ("Pop", "valence", [(0.5, 0), (0.501, 20)]),
    ("Jazz/Blues", "valence", [(0.499, 10), (0.5, 0)]),
    ("Country", "spectral_centroid_mean", [(2999, 5), (3000, 0)]),
    ("Jazz/Blues", "spectral_centroid_mean", [(2000, 0), (2001, 20), (3499, 20), (3500, 0)]),
    ("Metal", "spectral_centroid_mean", [(3500, 0), (3501, 15)]),
    ("Metal", "loudness", [(-8, 0), (-7.9, 20)]),
    ("Pop", "loudness", [(-13, 0), (-12, 0), (-10, 0), (-8, 0), (-7, 0)]),
    ("Reggae/Dancehall", "danceability", [(0.7, 0), (0.701, 30)]),
]


@pytest.mark.parametrize(("name", "feature", "steps"), STEPS, ids=lambda value: str(value)[:20])
def test_rules_at_their_bounds(name, feature, steps):
    """Differences between points: nothing else of the genre changes with the feature."""
    found = [heuristic_points({**NEUTRAL, feature: value})[name] for value, _ in steps]
    expected = [points for _, points in steps]
    assert [a - found[0] for a in found] == [b - expected[0] for b in expected]


def test_words_and_themes():
    def points(name, vocabulary=0.5, themes=()):
        lyrics = {"themes": list(themes), "complexity": {"vocabulary_richness": vocabulary}}
        return heuristic_points(NEUTRAL, lyrics)[name]

    rap = [points("Hip-Hop/Rap", words) for words in (0.2, 0.21, 0.6, 0.61)]
    assert [each - rap[0] for each in rap] == [0, 10, 10, 25]
    assert points("Classical/Instrumental") - points("Classical/Instrumental", themes=["x"]) == 10
    assert points("Pop", themes=["love", "party"]) - points("Pop") == 15
    assert heuristic_points(NEUTRAL)["Hip-Hop/Rap"] == rap[1]


def test_nothing_given_is_the_published_defaults():
    assert set(heuristic_points({})) == set(HEURISTICS)
    assert heuristic_points({}) == heuristic_points({"tempo": 120, "energy": 0.5})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "fast", None, True])
def test_features_that_are_no_numbers_are_refused(bad):
    with pytest.raises(OptionError, match="The feature tempo is"):
        heuristic_points({"tempo": bad})


@pytest.mark.parametrize("lyrics", [{"themes": 3}, {"themes": [1]}, {"complexity": []}])
def test_lyrics_of_another_form_are_refused(lyrics):
    with pytest.raises(OptionError):
        heuristic_points({}, lyrics)


def test_labels_are_mapped_as_published():
    assert instruments_of({"Violin, fiddle": 0.3, "Fiddle": 0.4, "Drum": 0.1, "Drum kit": 0.2}) == {
        "violin": 0.4,
        "drums": 0.2,
    }
    many = {f"label {i}": 0.5 for i in range(100)}
    assert instruments_of({**many, "Banjo": 0.4}) == {}
    assert genres_of({"hiphop": 0.5, "Jazz": 0.2, "blues": 0.1, "polka": 0.2}) == pytest.approx(
        {"Hip-Hop/Rap": 0.5, "Jazz/Blues": 0.3, "Polka": 0.2}
    )


GTZAN = ("blues", "classical", "country", "disco", "hiphop", "jazz", "rock")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    export_classifier(ast_folder(folder / "a"), folder / "tagger", name="tagger")
    source = wave_folder(folder / "h", **named(GTZAN))
    export_classifier(source, folder / "genre", name="genre")
    return {"tagger": folder / "tagger", "classifier": folder / "genre"}


@pytest.fixture
def recording(tmp_path, audio):
    path = tmp_path / "song.wav"
    soundfile.write(path, audio, 16000)
    return path


def test_the_published_function_end_to_end(recording, networks):
    found = detect_genre_hybrid(recording, {"tempo": 120}, None, **networks)
    assert list(found) == [
        *("primary_genre", "confidence", "predictions", "all_scores", "method", "components")
    ]
    assert len(found["predictions"]) == 3
    assert sum(found["all_scores"].values()) == pytest.approx(100, abs=0.1)
    raw = found["components"]["ml"]["raw_predictions"]
    assert {each["label"] for each in raw} == set(GTZAN)
    assert sum(each["score"] for each in raw) == pytest.approx(1, abs=1e-5)
    instruments = found["components"]["instruments"]["instruments"]
    assert set(instruments) == {"violin", "drums", "harmonica", "banjo"}
    genres = found["components"]["ml"]["canonical_scores"]
    expected = published_result(heuristic_result({"tempo": 120}), genres, instruments, {})
    assert expected["all_scores"] == found["all_scores"]


def test_the_published_fallbacks(recording, networks):
    heuristic = heuristic_result({"tempo": 120})
    assert detect_genre_hybrid(None, {"tempo": 120}) == heuristic
    with pytest.warns(ResultWarning, match="No bundle of kind"):
        assert detect_genre_hybrid(recording, {"tempo": 120}) == heuristic
    for part, key in (("tagger", "ml"), ("classifier", "instruments")):
        with pytest.warns(ResultWarning):
            found = detect_genre_hybrid(recording, {}, **{part: networks[part]})
        assert "error" in found["components"][key]
        assert found["method"] == "hybrid_ml_instrument"


def test_of_a_long_recording_only_the_clip_is_read(tmp_path, networks, audio):
    whole = np.concatenate([audio] * 12)
    paths = [tmp_path / "long.wav", tmp_path / "clip.wav"]
    for path, samples in zip(paths, (whole, whole[: 30 * 16000]), strict=True):
        soundfile.write(path, samples, 16000)
    long, clip = (detect_genre_hybrid(path, {}, **networks)["all_scores"] for path in paths)
    assert long == clip


def test_a_recording_that_is_none_is_refused(tmp_path, networks):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"nothing")
    with pytest.raises(AudioError):
        detect_genre_hybrid(bad, {}, **networks)
    with pytest.raises(AudioError):
        genre(tmp_path / "missing.wav")


def test_evidence_on_a_fresh_install(recording, tiny_model):
    found = genre(recording, model=tiny_model)
    assert found.method in ("transcription", "heuristic")
    assert sum(found.all_scores.values()) == pytest.approx(1)
    assert len(found.warnings) == 2
    assert set(found.components["features"]) == {*NEUTRAL}
    assert json.loads(json.dumps(found.to_dict()))["primary_genre"] == found.primary_genre


def test_evidence_with_both_networks(recording, tiny_model, networks):
    found = genre(recording, model=tiny_model, **networks)
    assert found.method.startswith(("hybrid_ml_", "ml"))
    assert found.warnings == ()
    assert found.components["ml"]


def test_published_rules_through_genre(recording, networks):
    found = genre(recording, rules="published", **networks)
    assert found.method == "hybrid_ml_instrument"
    inner = found.components["published"]
    assert found.primary_genre == inner["primary_genre"]
    samples = soundfile.read(recording, dtype="float32")
    again = genre(samples[0], sr=samples[1], rules="published", **networks)
    assert again.primary_genre == found.primary_genre


def test_several_classifiers_are_averaged_by_weight(recording, networks, tiny_model, tmp_path):
    one = networks["classifier"]
    other = tmp_path / "other"
    source = wave_folder(tmp_path / "source", "wav2vec2", **named(GTZAN))
    export_classifier(source, other, name="other")

    def ml(classifier):
        return genre(recording, model=tiny_model, classifier=classifier).components["ml"]

    first, second = ml(one), ml(other)
    assert first != second
    for weights, share in (({str(one): 3.0, str(other): 1.0}, 0.75), ([one, other], 0.5)):
        found = ml(weights)
        for name, score in found.items():
            expected = share * first.get(name, 0.0) + (1 - share) * second.get(name, 0.0)
            assert score == pytest.approx(expected)
    for wrong in ({str(one): 0.0}, {str(one): float("nan")}, {str(one): True}, []):
        with pytest.raises(OptionError):
            ml(wrong)
    with pytest.raises(OptionError, match="takes one genre classifier"):
        genre(recording, rules="published", classifier=[one, other])


def test_a_bundle_that_is_named_must_be_there(recording, tiny_model):
    with pytest.raises(BundleNotFoundError, match="'nobody' of kind genre"):
        genre(recording, model=tiny_model, classifier="nobody")


def test_parts_that_are_missing_leave_their_weight():
    rules = EvidenceRules()
    ml, instruments, points = {"Rock": 2.0}, {"Country": 0.3}, {"Pop": 50.0, "Rock": 50.0}
    parts = {"ml": ml, "instruments": instruments, "heuristics": points}
    assert combine(parts, rules) == pytest.approx({"Country": 0.6, "Rock": 0.3, "Pop": 0.1})
    assert combine({**parts, "instruments": {}}, rules) == pytest.approx(
        {"Rock": 0.75, "Pop": 0.25}
    )
    assert combine({"ml": {}, "instruments": {}, "heuristics": {}}, rules) == {}


def test_a_violin_is_a_fiddle_only_in_a_band():
    rules = EvidenceRules()
    alone = boosts({"violin": 0.9}, rules)
    band = boosts({"violin": 0.4, "acoustic_guitar": 0.3, "banjo": 0.2, "bass": 0.1}, rules)
    assert max(alone, key=alone.get) == "Classical/Instrumental"
    assert "Country" not in alone
    assert {"Country", "Bluegrass", "Folk"} <= set(band)
    assert "Classical/Instrumental" not in band


def test_boosts_have_no_cliffs():
    rules = EvidenceRules()
    low, high = (boosts({"brass": share}, rules) for share in (0.05, 0.051))
    assert low == {}
    assert high["Jazz/Blues"] == pytest.approx(0.002)


def test_instruments_of_notes_and_of_labels_are_on_one_scale():
    notes = [Note(0, 3, 60, 90, 40), Note(0, 1, 60, 90, 105), Note(0, 0.01, 38, 90, 0, True)]
    found = genre_instruments.of_notes(notes)
    assert found == pytest.approx({"violin": 3 / 4.1, "banjo": 1 / 4.1, "drums": 0.1 / 4.1})
    tagged = genre_instruments.of_labels({"Violin, fiddle": 0.3, "Banjo": 0.1, "Piano": 0.01})
    assert tagged == pytest.approx({"violin": 0.75, "banjo": 0.25})
    together = genre_instruments.together([found, tagged, {}])
    assert together["violin"] == pytest.approx((3 / 4.1 + 0.75) / 2)


def rules_file(path, text):
    path.write_text(text)
    return path


GAINS = """
[[gains]]
instrument = "brass"
genre = "Funk"
threshold = 0.1
gain = 2.0
context = "any"
"""


def test_rules_from_a_file(tmp_path, recording, tiny_model):
    path = rules_file(tmp_path / "r.toml", f"ml = 0\ninstruments = 0.0\nheuristics = 1.0\n{GAINS}")
    rules = read_rules(path)
    assert boosts({"brass": 0.6}, rules) == pytest.approx({"Funk": 1.0})
    found = genre(recording, model=tiny_model, rules=path, sonic={"tempo": 10.0})
    points = heuristic_points({"tempo": 10.0})
    assert found.primary_genre == max(points, key=points.get)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ml = nan\ninstruments = 1.0\nheuristics = 1.0\ngains = []",
        "ml = -1\ninstruments = 1.0\nheuristics = 1.0\ngains = []",
        "ml = 0\ninstruments = 0\nheuristics = 0\ngains = []",
        f"ml = 1\ninstruments = 1\nheuristics = 1\n{GAINS.replace('any', 'sometimes')}",
        f"ml = 1\ninstruments = 1\nheuristics = 1\nmore = 3\n{GAINS}",
        "ml = = 3",
    ],
)
def test_rules_that_make_no_sense_are_one_error(tmp_path, text):
    with pytest.raises(OptionError):
        read_rules(rules_file(tmp_path / "r.toml", text))


def clicks(tempo, seconds=12):
    samples = np.zeros(seconds * RATE, np.float32)
    burst = np.exp(-np.arange(800) / 100) * np.sin(np.arange(800) / 3)
    for beat in np.arange(0.1, seconds - 0.1, 60 / tempo):
        begin = round(beat * RATE)
        samples[begin : begin + 800] += burst[: len(samples) - begin].astype(np.float32)
    return samples


@pytest.mark.parametrize("tempo", [90, 100, 120, 128, 140, 160])
def test_the_tempo_of_clicks(tempo):
    assert sonic_features([clicks(tempo)])["tempo"] == pytest.approx(tempo, rel=0.04)


def test_features_are_what_they_say():
    time = np.arange(4 * RATE) / RATE
    tone = (0.1 * np.sqrt(2) * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    found = sonic_features([tone])
    assert found["loudness"] == pytest.approx(-20, abs=0.2)
    assert found["energy"] == 1.0 or found["energy"] == pytest.approx(1.0, abs=0.02)
    assert found["spectral_centroid_mean"] == pytest.approx(1000, rel=0.05)
    assert all(np.isfinite(value) for value in found.values())
    noise = np.random.RandomState(0).standard_normal(len(time)).astype(np.float32)
    assert sonic_features([0.1 * noise])["spectral_centroid_mean"] > 5000
    assert sonic_features([0.1 * noise])["acousticness"] < found["acousticness"]


def test_features_do_not_depend_on_blocks_and_survive_silence(audio):
    whole, cut = sonic_features([audio]), sonic_features(np.array_split(audio, 37))
    assert whole == pytest.approx(cut, rel=1e-6)
    silent = sonic_features([np.zeros(100, np.float32)])
    assert all(np.isfinite(value) for value in silent.values())


def run(*arguments):
    parser = argparse.ArgumentParser()
    command = GenreCommand()
    command.add_arguments(parser)
    return cli.guarded(lambda: command.run(parser.parse_args(list(map(str, arguments)))))


def test_the_command(capsys, recording, tiny_bundle, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"nothing")
    assert run(bad, recording, "-m", tiny_bundle, "-f", "json") == cli.ExitCode.FAILED
    row = json.loads(capsys.readouterr().out)
    assert row["file"] == str(recording)
    assert row["method"] in ("transcription", "heuristic")
    lyrics = tmp_path / "lyrics.json"
    lyrics.write_text('{"themes": ["love"]}')
    assert run(recording, "--rules", "published", "--lyrics", lyrics) == 0
    assert "(heuristic)" in capsys.readouterr().out
    lyrics.write_text("[]")
    assert run(recording, "--lyrics", lyrics) == cli.ExitCode.USAGE
