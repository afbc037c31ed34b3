import re
import zipfile

import mido
import numpy as np
import pytest

from mt3_analysis.assessment import musicxml
from mt3_analysis.assessment.score import read_scores
from mt3_runtime.errors import OptionError


def xml_note(step="C", octave=4, duration=4, extra="", alter=None):
    accidental = "" if alter is None else f"<alter>{alter}</alter>"
    pitch = f"<pitch><step>{step}</step>{accidental}<octave>{octave}</octave></pitch>"
    return f"<note>{extra}{pitch}<duration>{duration}</duration></note>"


def document(*measures, head="", divisions=4):
    attributes = f"<attributes><divisions>{divisions}</divisions></attributes>"
    bodies = [f"{attributes if i == 0 else ''}{body}" for i, body in enumerate(measures)]
    text = "".join(f'<measure number="{i}">{body}</measure>' for i, body in enumerate(bodies))
    return (
        f'<?xml version="1.0"?>{head}<score-partwise><part id="P1">{text}</part></score-partwise>'
    )


def read(tmp_path, text, name="a.musicxml"):
    path = tmp_path / name
    path.write_text(text)
    return read_scores(path)


def columns(score):
    return list(
        zip(score.onset_q.tolist(), score.length_q.tolist(), score.pitch.tolist(), strict=True)
    )


def test_chords_voices_and_accidentals(tmp_path):
    first = xml_note("C") + xml_note("E", extra="<chord/>") + xml_note("F", alter=1)
    second = "<backup><duration>8</duration></backup>" + xml_note("C", 3, 8)
    (score,) = read(tmp_path, document(first + second))
    assert columns(score) == [(0.0, 2.0, 48), (0.0, 1.0, 60), (0.0, 1.0, 64), (1.0, 1.0, 66)]
    assert score.repeats is None


def test_ties_are_joined_across_measures(tmp_path):
    first = xml_note("C", extra='<tie type="start"/>')
    second = xml_note("C", extra='<tie type="stop"/>') + xml_note("C")
    (score,) = read(tmp_path, document(first, second))
    assert columns(score) == [(0.0, 2.0, 60), (2.0, 1.0, 60)]


def test_grace_notes_rests_forward_and_transposition(tmp_path):
    grace = "<note><grace/><pitch><step>D</step><octave>4</octave></pitch></note>"
    rest = "<note><rest/><duration>4</duration></note>"
    moved = "<attributes><transpose><chromatic>-2</chromatic></transpose></attributes>"
    ahead = "<forward><duration>2</duration></forward>"
    (score,) = read(
        tmp_path, document(rest + grace + xml_note("C") + ahead + moved + xml_note("C"))
    )
    assert columns(score) == [(1.0, 1.0, 60), (1.0, 0.0, 62), (2.5, 1.0, 58)]


def test_trills_are_marked(tmp_path):
    mark = "<notations><ornaments><trill-mark/></ornaments></notations>"
    (score,) = read(tmp_path, document(xml_note(extra=mark) + xml_note("D")))
    assert score.ornament.tolist() == [True, False]


FORWARD = '<barline location="left"><repeat direction="forward"/></barline>'
BACKWARD = '<barline location="right"><repeat direction="backward"/></barline>'


def ending(numbers, kind="start"):
    return f'<barline><ending number="{numbers}" type="{kind}"/></barline>'


@pytest.mark.parametrize(
    ("measures", "order"),
    [
        (["C", "D" + BACKWARD, "E"], "CDCDE"),
        (["C", FORWARD + "D", "E" + BACKWARD, "F"], "CDEDEF"),
        (["C", ending("1") + "D" + BACKWARD, ending("2") + "E", "F"], "CDCEF"),
        (
            [
                "C",
                ending("1,2") + "D" + BACKWARD.replace("/><", ' times="3"/><'),
                ending("3") + "E",
            ],
            "CDCDCE",
        ),
        (["C" + BACKWARD, "D" + BACKWARD, "E"], "CCDDE"),
        ([FORWARD + "C", ending("1") + "D", "E" + BACKWARD, ending("2") + "F", "G"], "CDECFG"),
    ],
)
def test_repeats_give_two_readings(tmp_path, measures, order):
    alone = r"(?<![A-Za-z<])[C-G](?![A-Za-z])"
    bodies = [re.sub(alone, lambda found: xml_note(found[0]), text) for text in measures]
    plain, repeated = read(tmp_path, document(*bodies))
    names = {60: "C", 62: "D", 64: "E", 65: "F", 67: "G"}
    assert len(plain) == len(measures)
    assert "".join(names[p] for p in repeated.pitch.tolist()) == order
    assert (plain.repeats, repeated.repeats) == (False, True)


def archive(path, name="a.xml", data=None, root="a.xml"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        container = f'<container><rootfiles><rootfile full-path="{root}"/></rootfiles></container>'
        file.writestr("META-INF/container.xml", container)
        file.writestr(name, data if data is not None else document(xml_note()))
    return path


def test_compressed_scores(tmp_path):
    (score,) = read_scores(archive(tmp_path / "a.mxl"))
    assert columns(score) == [(0.0, 1.0, 60)]


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(musicxml, "MAX_BYTES", 1 << 16)
    with pytest.raises(OptionError, match="unpacks to more"):
        read_scores(archive(tmp_path / "a.mxl", data=document(" " * (1 << 20))))
    with pytest.raises(OptionError, match="not in the archive"):
        read_scores(archive(tmp_path / "b.mxl", root="../../etc/passwd"))
    lol = '<!DOCTYPE a [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>'
    with pytest.raises(OptionError, match="entities"):
        read(tmp_path, document(xml_note(), head=lol))
    outer = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    with pytest.raises(OptionError, match="entities"):
        read(tmp_path, document("&x;", head=outer))
    with pytest.raises(OptionError, match="levels"):
        read(tmp_path, "<a>" * 100 + "</a>" * 100)
    monkeypatch.setattr(musicxml, "MAX_ELEMENTS", 10)
    with pytest.raises(OptionError, match="elements"):
        read(tmp_path, document(*[xml_note()] * 10))


def test_the_usual_doctype_is_read(tmp_path):
    head = (
        '<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD" "http://www.musicxml.org/dtds/p.dtd">'
    )
    assert len(read(tmp_path, document(xml_note(), head=head))[0]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no score",
        "<score-timewise/>",
        document(xml_note("H")),
        document(xml_note(octave="x")),
        document(xml_note(octave=99)),
        document(xml_note(duration="inf")),
        document(xml_note(), divisions=0),
        document(xml_note(duration="x")),
        document("<note><rest/><duration>4</duration></note>"),
    ],
)
def test_what_is_no_score_is_refused(tmp_path, text):
    with pytest.raises(OptionError):
        read(tmp_path, text)


def test_scores_as_midi_are_in_quarters(tmp_path):
    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=300_000))
    for pitch, tempo in ((60, 900_000), (62, 400_000)):
        track.append(mido.Message("note_on", note=pitch, velocity=64))
        track.append(mido.MetaMessage("set_tempo", tempo=tempo, time=120))
        track.append(mido.Message("note_off", note=pitch, time=120))
    mido.MidiFile(type=0, ticks_per_beat=240, tracks=[track]).save(tmp_path / "s.mid")
    (score,) = read_scores(tmp_path / "s.mid")
    np.testing.assert_allclose(score.onset_q, [0.0, 1.0])
    np.testing.assert_allclose(score.length_q, [1.0, 1.0])
    assert score.chord_of().tolist() == [0, 1]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.mid").write_bytes(b"nothing")
    for name in ("a.pdf", "none.mid", "none.musicxml", "a.mid"):
        with pytest.raises(OptionError):
            read_scores(tmp_path / name)
