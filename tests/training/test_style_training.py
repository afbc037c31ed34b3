"""The style head from a folder laid out as PercePiano: ten made-up excerpts and ratings."""

import json

import numpy as np
import pytest

from mt3_analysis import assess
from mt3_analysis.assessment.judging.style_bundle import WEIGHTS, open_style
from mt3_analysis.assessment.performance import Performance
from mt3_runtime.cli import main
from mt3_runtime.errors import BundleError, OptionError
from mt3_training.performance_sets import percepiano, style_training
from mt3_training.performance_sets.degradation import degraded
from mt3_training.performance_sets.made_performances import make_piece, play
from mt3_training.performance_sets.percepiano import (
    excerpt_folds,
    movement_folds,
    parse_name,
    read_folds,
    read_percepiano,
)
from mt3_training.performance_sets.performance_files import midi_bytes

MOVEMENTS = ("Composer_W1_mv1", "Composer_W1_mv2")
PLAYERS = ("1", "2", "3", "Score")


def name(excerpt, player):
    return f"{MOVEMENTS[excerpt % 2]}_8bars_{player}_{excerpt}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten excerpts; the more a take is compressed and cut short, the lower its ratings."""
    path = tmp_path_factory.mktemp("percepiano")
    for place in (percepiano.PERFORMANCES, percepiano.SCORES):
        (path / place).mkdir(parents=True)
    labels = {}
    for excerpt in range(10):
        score = make_piece(excerpt, quarters=16)
        on, off = score.onset_q / 2, (score.onset_q + np.maximum(score.length_q, 0.1)) / 2
        written = Performance.from_arrays(on, off, pitch=score.pitch)
        (path / percepiano.SCORES / f"{name(excerpt, 'Score')}.mid").write_bytes(
            midi_bytes(written)
        )
        for index, player in enumerate(PLAYERS):
            level = index / 3
            take = degraded(play(score, 10 * excerpt + index), "compression", level, seed=1)
            take = degraded(take, "legato", level, seed=1)
            file = path / percepiano.PERFORMANCES / f"{name(excerpt, player)}.mid"
            file.write_bytes(midi_bytes(take))
            labels[name(excerpt, player)] = [0.8 - 0.5 * level] * 19 + [0]
            labels[name(excerpt, player)][1] = 0.3  # or one dimension were always 0.5
    (path / percepiano.LABELS).write_text(json.dumps(labels))
    return path


@pytest.fixture(scope="module")
def rated(folder):
    return read_percepiano(folder, verify=False)


@pytest.fixture(scope="module")
def bundle(rated, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "style"
    told = []
    style_training.train_style(rated, out, told=told.append)
    assert any("unseen movements" in line for line in told)
    return out


def test_names_say_movement_excerpt_and_player():
    found = parse_name(" Schubert_D935_no.3_4bars_2_11")
    assert found == ("Schubert_D935_no.3", "Schubert_D935_no.3_4bars_11", "2")
    theme, variation = (
        parse_name("Beethoven_WoO80_thema_8bars_1_1"),
        "Beethoven_WoO80_var9_8bars_2_3",
    )
    assert theme.movement == parse_name(variation).movement == "Beethoven_WoO80"
    assert parse_name("Schubert_D960_mv2_8bars_Score2_25").is_rendering
    assert not theme.is_rendering
    with pytest.raises(OptionError, match="no name"):
        parse_name("take one")


def test_recordings_are_read_with_scores_and_labels(rated):
    assert len(rated.names) == 40
    assert rated.labels.shape == (40, 19)
    assert not rated.left_out
    matched = rated.values[:, list(style_training.MEASURES).index("matched_notes")]
    assert (matched > 0.95).all()
    assert rated.people().sum() == 30
    dims = rated.dimensions()
    up, down = dims[:, 4], dims[:, 0]  # dynamic_range; rhythmic_stability, of the lower end
    np.testing.assert_allclose(up, rated.labels[:, 0])
    np.testing.assert_allclose(down, 1.0 - rated.labels[:, 0])


def test_no_excerpt_and_no_movement_is_in_two_parts(rated):
    for parts, group in ((excerpt_folds, "excerpt"), (movement_folds, "movement")):
        found = {}
        for part, parsed in zip(parts(rated.parsed), rated.parsed, strict=True):
            found.setdefault(getattr(parsed, group), set()).add(part)
        assert all(len(each) == 1 for each in found.values())
    assert len(set(movement_folds(rated.parsed))) == 2


def test_published_folds_are_read_by_name(rated, tmp_path):
    half = {"fold_0": list(rated.names[:20]), "fold_1": [f"{n}.mid" for n in rated.names[20:30]]}
    (tmp_path / "folds.json").write_text(json.dumps(half | {"test": ["x"]}))
    assert read_folds(tmp_path / "folds.json", rated.names) == [0] * 20 + [1] * 10 + [-1] * 10
    for text in ("", "[]", "{}", '{"fold_0": 3, "fold_1": 4}'):
        (tmp_path / "folds.json").write_text(text)
        with pytest.raises(OptionError):
            read_folds(tmp_path / "folds.json", rated.names)


def test_other_labels_are_refused(folder, tmp_path):
    with pytest.raises(OptionError, match="not the published file"):
        read_percepiano(folder)
    with pytest.raises(OptionError, match="cannot read"):
        read_percepiano(tmp_path)
    for text in ("[]", '{"a": [1]}', '{"a": ["x"]}', "no"):
        (tmp_path / percepiano.LABELS).write_text(text)
        with pytest.raises(OptionError, match="no labels"):
            read_percepiano(tmp_path, verify=False)
    (tmp_path / percepiano.LABELS).write_text(json.dumps({"Piece_8bars_1_1": [0.5] * 19}))
    with pytest.raises(OptionError, match="can be used"):
        read_percepiano(tmp_path, verify=False)


def test_the_network_learns_what_ratings_follow(rated):
    labels, excerpts = rated.labels[:, :1], [each.excerpt for each in rated.parsed]
    values = rated.values
    found = style_training.held_out(values, labels, excerpt_folds(rated.parsed), members=1)
    judged = style_training.scores(labels, found, excerpts)
    assert judged.r > 0.6
    assert judged.pairs > 0.8
    share = style_training.coverage(labels, found, movement_folds(rated.parsed))
    assert 0.6 < share <= 1.0
    chance = style_training.scores(labels, np.zeros_like(found) + found.mean(), excerpts)
    assert chance.pairs < 0.6


def test_a_bundle_judges_takes(bundle, folder):
    head = open_style(bundle)
    assert [each.name for each in head.manifest.dimensions] == list(percepiano.DIMENSIONS)
    score = folder / percepiano.SCORES / f"{name(2, 'Score')}.mid"
    found = {}
    for player in ("1", "3"):
        take = folder / percepiano.PERFORMANCES / f"{name(2, player)}.mid"
        for given in (None, score):
            said = assess(take, score=given, style=bundle)["dynamic_range"]
            assert said.assessed
            assert 0.0 <= said.low <= said.value <= said.high <= 1.0
            assert len(said.why) == 3
            found[player, given is None] = said.value
    assert found["1", True] > found["3", True]
    assert found["1", False] > found["3", False]


def test_what_is_unlike_the_training_set_is_not_judged(bundle):
    rng = np.random.default_rng(1)
    on = np.sort(rng.uniform(0, 2.0, 400))
    odd = Performance.from_arrays(
        on, on + 9.0, pitch=rng.integers(21, 108, 400), velocity=rng.integers(1, 127, 400),
        pedals={64: [(0.01 * i, 127 * (i % 2)) for i in range(900)]},
    )  # fmt: skip
    said = assess(odd, style=bundle)["tone_quality"]
    assert not said.assessed
    assert "unlike" in said.reason
    soft = Performance.from_arrays(on, on + 0.2, pitch=rng.integers(40, 80, 400))
    assert "needs" in assess(soft, style=bundle)["tone_quality"].reason


def test_damaged_bundles_are_refused(bundle, tmp_path):
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    data = (bundle / WEIGHTS).read_bytes()

    def opened(changes, weights=data):
        place = tmp_path / "damaged"
        place.mkdir(exist_ok=True)
        (place / "bundle.json").write_text(json.dumps(manifest | changes))
        (place / WEIGHTS).write_bytes(weights)
        return open_style(place)

    opened({})
    for changes, weights in (
        ({}, data[:-4]),
        ({}, data[:-4] + b"\0\0\0\1"),
        ({"kind": "tagger"}, data),
        ({"dimensions": []}, data),
        ({"networks": []}, data),
        ({"size": 8}, data),
        ({"sha256": "0"}, data),
        ({"more": 1}, data),
    ):
        with pytest.raises(BundleError):
            opened(changes, weights)


def test_the_verbs_write_what_they_name(folder, tmp_path, capsys):
    takes, scores = folder / percepiano.PERFORMANCES, folder / percepiano.SCORES

    def run(*arguments):
        return main(["calibrate", "assess", *map(str, arguments)])

    style = tmp_path / "style"
    report = ["--report", tmp_path / "report.json"]
    assert run("style", folder, "-o", style, "--unverified", *report) == 0
    assert open_style(style)
    assert json.loads((tmp_path / "report.json").read_text())["recordings"] == 40
    assert run("style", folder, "-o", style, "--unverified") != 0
    assert "is there already" in capsys.readouterr().err
    assert run("reference", takes, "--scores", scores, "-o", tmp_path / "r.json") == 0
    assert json.loads((tmp_path / "r.json").read_text())["knots"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.mid").write_bytes(next(takes.glob("*.mid")).read_bytes())
    degrade = ("degrade", tmp_path / "one", "-o", tmp_path / "set")
    assert run(*degrade, "--kinds", "wrong,pedal_held", "--levels", "0.5,1") == 0
    made = json.loads((tmp_path / "set" / "set.json").read_text())["files"]
    assert [row["kind"] for row in made] == ["none", *["wrong"] * 2, *["pedal_held"] * 2]
    assert all((tmp_path / "set" / row["file"]).is_file() for row in made)
    for wrong in (("--kinds", "loud"), ("--levels", "2"), ("--levels", "x"), ()):
        assert run(*degrade, *wrong) != 0
    assert run("reference", tmp_path / "none", "-o", tmp_path / "r.json") != 0
    assert run("scale", "--pieces", 1) != 0
