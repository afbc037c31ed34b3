"""The OpenAPI document says what the service does: paths, methods, options, statuses, shapes."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route, WebSocketRoute

from mt3_runtime.decoding.search import SearchName
from mt3_runtime.files.formats import FORMATS
from mt3_server.api.muscriptor_api import _FIELDS
from mt3_server.api.result_files import MEDIA_TYPES
from mt3_server.api.transcribe_query import NAMES, OPTIONS
from mt3_server.openapi_document import openapi
from mt3_server.protection.access import OPEN_PATHS
from mt3_server.service_app import api_routes
from tests.needs import ROOT
from tests.server.running import json_lines

DOCUMENT = openapi()
PATHS = DOCUMENT["paths"]
METHODS = {"get", "post", "delete"}
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def documented() -> set[tuple[str, str]]:
    return {(path, method) for path, item in PATHS.items() for method in METHODS & set(item)}


def test_every_route_is_documented_and_every_documented_one_is_there():
    there = set()
    for route in api_routes():
        if isinstance(route, WebSocketRoute):
            there.add((route.path, "get"))
        elif isinstance(route, Route):
            there |= {(route.path, name.lower()) for name in route.methods - {"HEAD"}}
    assert documented() == there


def test_options_are_those_that_are_understood():
    def names(operation):
        return {item["name"] for item in operation["parameters"]}

    assert names(PATHS["/v1/transcriptions"]["post"]) == set(NAMES)
    assert names(PATHS["/v1/jobs"]["post"]) == {*OPTIONS, "model", "tempo", "deadline"}
    assert names(PATHS["/v1/jobs/{job}/result"]["get"]) == {"format", "split"}
    form = PATHS["/transcribe"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(form["schema"]["properties"]) == {"file", *_FIELDS}
    options = {item["name"]: item for item in PATHS["/v1/transcriptions"]["post"]["parameters"]}
    assert options["format"]["schema"]["enum"] == [*FORMATS]
    assert set(options["decoding"]["schema"]["enum"]) == set(SearchName.__args__)
    answers = PATHS["/v1/transcriptions"]["post"]["responses"]["200"]["content"]
    assert {kind.partition(";")[0] for kind in MEDIA_TYPES.values()} <= set(answers)


def test_references_lead_somewhere():
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT)):
        found = DOCUMENT
        for key in reference.split("/"):
            found = found[key]
        assert found


def test_what_is_open_says_so():
    for path, method in documented():
        assert (PATHS[path][method].get("security") == []) == (path in OPEN_PATHS), path


def schema_of(path: str, method: str, status: int) -> dict:
    answer = PATHS[path][method]["responses"][str(status)]
    return answer["content"]["application/json"]["schema"]


def fits(value, schema) -> bool:
    """Whether a value has what a schema demands, as far as this document uses schemas."""
    if "$ref" in schema:
        return fits(value, DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "oneOf" in schema:
        return sum(fits(value, each) for each in schema["oneOf"]) == 1
    if "const" in schema:
        return value == schema["const"]
    kinds = schema.get("type", [])
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
             "boolean": bool, "null": type(None)}  # fmt: skip
    named = [kinds] if isinstance(kinds, str) else kinds
    if named and not any(isinstance(value, types[kind]) for kind in named):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        if not set(schema.get("required", ())) <= set(value):
            return False
        inner = schema.get("properties", {})
        return all(fits(value[name], inner[name]) for name in inner if name in value)
    return not isinstance(value, list) or all(fits(each, schema.get("items", {})) for each in value)


@pytest.mark.parametrize(
    "path", [path for path, method in sorted(documented())
             if method == "get" and "{" not in path and path not in ("/metrics", "/v1/live")]
)  # fmt: skip
def test_answers_have_the_documented_shape(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert fits(answer.json(), schema_of(path, "get", 200))


def test_jobs_events_and_errors_have_the_documented_shape(client, upload):
    taken = client.post("/v1/jobs", content=upload)
    assert fits(taken.json(), schema_of("/v1/jobs", "post", 202))
    job = taken.json()["id"]
    assert fits(client.get(f"/v1/jobs/{job}").json(), schema_of("/v1/jobs/{job}", "get", 200))
    events = client.post(
        "/v1/transcriptions", content=upload, headers={"accept": "application/x-ndjson"}
    )
    for item in json_lines(events.text):
        assert fits(item, DOCUMENT["components"]["schemas"]["Event"]), item
    error = DOCUMENT["components"]["schemas"]["Error"]
    other = {"host": "x.example"}
    for answer in (
        client.post("/v1/transcriptions", content=b"x"),
        client.get("/nothing"),
        client.put("/v1/jobs"),
        client.get("/version", headers=other),
    ):
        assert fits(answer.json(), error)
        assert answer.status_code >= 400


def test_the_check_of_shapes_finds_faults():
    event = DOCUMENT["components"]["schemas"]["Event"]
    assert not fits({"type": "note_on"}, event)
    assert not fits({"type": "progress", "seconds_done": 1, "notes": 2}, event)
    assert not fits([], DOCUMENT["components"]["schemas"]["Job"])


def test_metrics_parse_and_have_every_documented_name(client, upload):
    client.post("/v1/transcriptions", content=upload)
    client.get("/nothing")
    families = {
        one.name: one for one in text_string_to_metric_families(client.get("/metrics").text)
    }
    listed = set(re.findall(r"^\| `(mt3_\w+?)(?:\{[^}]*\})?` \|", PAGE, re.MULTILINE))
    assert listed
    there = {
        name + ("_total" if family.type == "counter" else "") for name, family in families.items()
    }
    assert listed == {name for name in there if name.startswith("mt3_")}
    assert any(name.startswith("process_resident_memory") for name in there)
    for family in families.values():
        assert family.documentation


def test_the_page_names_every_path():
    for path in PATHS:
        assert f"`{path}`" in PAGE or f" {path}`" in PAGE, path
