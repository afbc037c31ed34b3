"""Transcriptions over HTTP: results, events, options, stems; equal to those of the model."""

from __future__ import annotations

import io
import json
import zipfile

import pytest

from mt3_runtime.files.formats import FORMATS, parse_json, parse_midi, render
from mt3_server.api.event_lines import NDJSON, SSE
from mt3_server.api.result_files import MEDIA_TYPES
from tests.server.running import data_of_events, json_lines

V1 = "/v1/transcriptions"


@pytest.fixture(scope="module")
def expected(model, upload):
    return model.transcribe_notes(io.BytesIO(upload))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("way", ["body", "form"])
def test_a_result_is_the_model_s(client, upload, expected, form, way):
    if way == "body":
        answer = client.post(V1, params={"format": form}, content=upload)
    else:
        answer = client.post(V1, data={"format": form}, files={"file": ("x.flac", upload)})
    assert answer.status_code == 200, answer.text
    assert answer.content == render(expected, form)
    assert answer.headers["content-type"] == MEDIA_TYPES[form]
    assert answer.headers["x-mt3-token-digest"] == expected.token_digest
    assert "result." in answer.headers["content-disposition"]


def test_curl_s_way_to_send_a_body_is_understood(client, upload, expected):
    kind = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post(V1, content=upload, headers=kind)
    assert parse_midi(answer.content) == parse_midi(render(expected, "midi"))


@pytest.mark.parametrize(("accept", "form"), [("application/json", "json"), ("text/csv", "csv")])
def test_the_format_may_be_what_is_accepted(client, upload, expected, accept, form):
    answer = client.post(V1, content=upload, headers={"accept": accept})
    assert answer.content == render(expected, form)


def test_options_are_the_model_s(client, model, upload):
    options = {"instruments": "bass, drums", "grammar": "true", "min_confidence": "0.2",
               "auto_filter": "classic", "smooth": "1", "tempo": "90"}  # fmt: skip
    answer = client.post(V1, params=options, content=upload)
    result = model.transcribe_notes(
        io.BytesIO(upload), instruments="bass, drums", grammar=True, min_confidence=0.2,
        auto_filter="classic", smooth=True,
    )  # fmt: skip
    assert answer.content == render(result, "midi", tempo=90.0)


def test_stems_are_files_of_an_archive(client, upload, expected):
    answer = client.post(V1, params={"split": "stems", "format": "csv"}, content=upload)
    assert answer.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    stems = expected.stems()
    assert set(archive.namelist()) == {f"{name}.csv" for name in stems}
    for name, notes in stems.items():
        assert archive.read(f"{name}.csv") == render(notes, "csv")


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_events_come_as_segments_complete(client, upload, expected, accept):
    pieces = []
    with client.stream("POST", V1, content=upload, headers={"accept": accept}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == accept
        pieces += answer.iter_text()
    text = "".join(pieces)
    found = json_lines(text) if accept == NDJSON else data_of_events(text)
    kinds = [item["type"] for item in found]
    assert kinds.count("progress") == len(expected.segments) + 1
    assert kinds[-1] == "done"
    done = found[-1]
    assert done["token_digest"] == expected.token_digest
    assert parse_json(json.dumps(done["result"])) == parse_json(render(expected, "json"))
    begun = {item["number"] for item in found if item["type"] == "note_on"}
    ended = [item["number"] for item in found if item["type"] == "note_off"]
    assert sorted(ended) == sorted(begun) == list(range(len(begun)))


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"instruments": "theremin of doom"}, 422),
        ({"tempo": "nan"}, 422),
        ({"deadline": "-1"}, 422),
        ({"min_confidence": "2"}, 422),
        ({"grammar": "perhaps"}, 422),
        ({"format": "wav"}, 422),
        ({"model": "/etc/passwd"}, 422),
        ({"model": "http://127.0.0.1/x"}, 422),
        ({"url": "http://127.0.0.1/x"}, 422),
        ({"exclude": "x" * 3000}, 422),
        ({"instruments": "bass\0"}, 422),
        ([("format", "midi"), ("format", "json")], 422),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_upload(served, client, upload, options, status):
    answer = client.post(V1, params=options, content=upload)
    assert answer.status_code == status, answer.text
    assert answer.json()["message"]
    assert not list(served.service.spool.uploads.iterdir())


@pytest.mark.parametrize("accept", ["*/*", NDJSON, SSE])
def test_a_deadline_ends_a_request(client, upload, accept):
    answer = client.post(
        V1, params={"deadline": 0.1, "decoding": "t5x"}, content=upload, headers={"accept": accept}
    )
    assert answer.status_code in (200, 408)  # a quick machine is done by then
    if answer.status_code == 408:
        assert answer.json()["type"] == "deadline"


def test_what_there_is_is_listed(client, model):
    models = client.get("/v1/models").json()
    assert models["default"] == "tiny"
    assert models["models"][0]["export_id"] == model.info.export_id
    assert len(client.get("/v1/instruments").json()["instruments"]) == 129
    assert client.get("/version").json()["name"] == "mt3-runtime"
    assert client.post(V1, params={"model": "tiny"}, content=b"x").status_code == 415
