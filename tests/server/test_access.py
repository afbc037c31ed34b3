"""Host, origin, token, rates: who is let in."""

from __future__ import annotations

import re

import httpx
import pytest

from mt3_runtime.errors import OptionError
from mt3_server.protection.access import OPEN_PATHS
from mt3_server.protection.refusals import Refusal
from mt3_server.protection.request_rates import RequestRates
from mt3_server.service_app import _is_page, api_routes
from mt3_server.settings import Settings, is_loopback, read_tokens, token_digest_of
from tests.server.running import running

TOKEN = "correct-horse-battery-staple"
OTHER = "another-token-of-somebody-else"


@pytest.fixture(scope="module")
def guarded(model, tmp_path_factory):
    tokens = frozenset(map(token_digest_of, (TOKEN, OTHER)))
    options = {"tokens": tokens, "origins": frozenset({"https://friend.example"}),
               "hosts": frozenset({"music.example"})}  # fmt: skip
    with running(model, tmp_path_factory.mktemp("spool"), **options) as found:
        yield found


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example",
     "localhost/evil", "", "local host", "[::1", "localhost:port", "localhost\u00ff"],
)  # fmt: skip
def test_other_hosts_are_refused(client, host):
    answer = client.get("/v1/models", headers={"host": host.encode("latin-1")})
    assert answer.status_code in (400, 421)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:80", "10.0.0.7"]
)
def test_addresses_and_own_names_are_answered(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_name_that_was_allowed_is_answered(guarded):
    with guarded.client(headers=bearer(TOKEN)) as client:
        assert client.get("/version", headers={"host": "music.example"}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        "https://friend.example.evil.example",
        "",
    ],
)
def test_other_origins_are_refused(guarded, origin):
    with guarded.client(headers=bearer(TOKEN)) as client:
        answer = client.post("/v1/jobs", content=b"x", headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_cors_is_off_unless_an_origin_is_listed(client, guarded):
    asked = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    assert client.options("/v1/jobs", headers=asked).status_code == 403
    with guarded.client() as other:
        preflight = other.options("/v1/jobs", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
        answer = other.get("/version", headers=asked | bearer(TOKEN))
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"


def test_the_page_s_own_origin_is_let_in(served, client):
    assert client.get("/version", headers={"origin": served.url}).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff\xfe"],
)
def test_without_the_token_nothing_is_answered(guarded, header):
    with guarded.client() as client:
        for route in api_routes():
            path = route.path.replace("{job}", "0" * 32)
            if path in OPEN_PATHS or path == "/v1/live":
                continue
            method = "POST" if "POST" in route.methods else next(iter(route.methods))
            shown = {"authorization": header.encode("latin-1")} if header else {}
            answer = client.request(method, path, headers=shown)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in OPEN_PATHS:
            assert client.get(path).status_code == 200


def test_every_path_of_the_api_is_told_from_the_page_s():
    assert not [route.path for route in api_routes() if _is_page(route.path)]


def test_jobs_of_one_token_are_hidden_from_another(guarded, upload):
    with (
        guarded.client(headers=bearer(TOKEN)) as mine,
        guarded.client(headers=bearer(OTHER)) as theirs,
    ):
        job = mine.post("/v1/jobs", content=upload).json()["id"]
        assert mine.get(f"/v1/jobs/{job}").status_code == 200
        assert theirs.get(f"/v1/jobs/{job}").status_code == 404
        assert theirs.delete(f"/v1/jobs/{job}").status_code == 404
        assert theirs.get("/v1/jobs").json() == {"jobs": []}


def test_tokens_are_in_no_answer_and_no_log(guarded, caplog):
    caplog.set_level("INFO", "mt3_server")
    with guarded.client(headers=bearer(TOKEN)) as client:
        assert TOKEN not in client.get("/metrics").text
        assert client.get("/v1/jobs/" + TOKEN).status_code == 404
    said = [str(vars(record).get("facts")) for record in caplog.records]
    assert said
    assert not [line for line in said if TOKEN in line]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "music.example"])
def test_an_address_for_others_needs_a_token(tmp_path, host):
    assert not is_loopback(host)
    with pytest.raises(OptionError, match="--token-file"):
        Settings(spool=tmp_path, host=host)
    assert Settings(spool=tmp_path, host=host, tokens=frozenset({token_digest_of(TOKEN)})).tokens
    assert Settings(spool=tmp_path, host=host, open_to_all=True).open_to_all


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_alone_needs_none(tmp_path, host):
    assert not Settings(spool=tmp_path, host=host).tokens


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", "with a space in the middle\n",
                                  "k\u00f6nnen-wir-nicht-vergleichen\n"])  # fmt: skip
def test_a_file_without_good_tokens_is_refused(tmp_path, text):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(OptionError, match="token"):
        read_tokens(path)
    path.write_text(f"# mine\n{TOKEN}\n\n{OTHER}\n")
    assert read_tokens(path) == {token_digest_of(TOKEN), token_digest_of(OTHER)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70000), ("port", -1), ("readers", 0), ("readers", 1000), ("rate", 0.0),
     ("audio_seconds", float("inf")), ("drain", float("nan")),
     ("origins", frozenset({"example.org"})),
     ("origins", frozenset({"https://example.org/path"}))],
)  # fmt: skip
def test_settings_are_checked(tmp_path, name, value):
    with pytest.raises(OptionError, match=re.escape(name[:-1])):
        Settings(spool=tmp_path, **{name: value})


def test_rates_hold_for_each_client(tmp_path):
    now = [0.0]
    rates = RequestRates(Settings(spool=tmp_path, rate=60.0, burst=3), lambda: now[0])
    for _ in range(3):
        rates.count("a")
    with pytest.raises(Refusal) as refused:
        rates.count("a")
    assert refused.value.status == 429
    assert refused.value.headers["retry-after"] == "1"
    rates.count("b")
    now[0] = 1.0
    rates.count("a")
    with pytest.raises(Refusal):
        rates.count("a")


def test_requests_at_work_are_bounded_for_each_and_for_all(tmp_path):
    rates = RequestRates(Settings(spool=tmp_path, requests=3, requests_per_client=2))
    rates.begin("a")
    rates.begin("a")
    with pytest.raises(Refusal) as mine:
        rates.begin("a")
    rates.begin("b")
    with pytest.raises(Refusal) as all_of_them:
        rates.begin("c")
    assert (mine.value.status, all_of_them.value.status) == (429, 503)
    rates.end("a")
    rates.begin("c")
    assert rates.open == 3


def test_too_many_requests_are_told_when_to_try_again(model, tmp_path):
    with running(model, tmp_path, rate=60.0, burst=5) as found, found.client() as client:
        codes = [client.get("/version").status_code for _ in range(8)]
        assert codes.count(429) >= 2
        refused = httpx.get(found.url + "/version", trust_env=False)
        assert refused.status_code == 200 or refused.headers["retry-after"]
        assert client.get("/health/live").status_code == 200


def test_answers_carry_the_headers_that_keep_browsers_safe(client):
    for path in ("/version", "/nothing"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])


def test_a_page_is_served_under_a_strict_policy(model, tmp_path):
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<p>here</p>")
    (tmp_path / "secret").write_text("secret")
    (page / "link").symlink_to(tmp_path / "secret")
    tokens = frozenset({token_digest_of(TOKEN)})
    spool = tmp_path / "spool"
    with running(model, spool, page=page, tokens=tokens) as found, found.client() as client:
        answer = client.get("/")
        assert answer.text == "<p>here</p>"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        for path in ("/../secret", "/..%2fsecret", "/%2e%2e/secret", "/link", "//etc/passwd"):
            assert client.get(path).status_code in (401, 404), path
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "ODD"])
@pytest.mark.parametrize(
    "path",
    ["/%00", "/page%00/x", "/v1/jobs/%00/result", "/" + "x" * 5000, "/%ff%fe", "/%e2%80%ae.js",
     "/%ed%a0%80"],
)  # fmt: skip
def test_paths_that_no_file_can_have_are_not_found(client, method, path):
    assert client.request(method, path).status_code in (404, 405)
