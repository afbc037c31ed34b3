from __future__ import annotations

import importlib.util
import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.models import catalogue
from mt3_runtime.models.provenance import Provenance, parse, provenances
from tests import needs

TEXT = resources.files("mt3_runtime").joinpath("provenance.yaml").read_text(encoding="utf-8")
VARIANTS = {
    *("magenta_mt3", "magenta_ismir2021", "mt3_pytorch", "default"),
    *("mr_mt3_context0", "mr_mt3_context32", "mr_mt3_context64"),
    *("ymt3_plus", "yptf_single", "yptf_multi", "yptf_multi_ps"),
    *("yptf_moe_multi", "yptf_moe_multi_ps"),
}


def test_every_variant_has_an_entry_and_every_model_a_variant():
    assert set(provenances()) >= VARIANTS
    assert {model.exporter for model in catalogue.list_models()} <= set(provenances())


@pytest.mark.parametrize("name", provenances())
def test_an_entry_says_where_from_and_where_to(name):
    entry = provenances()[name]
    for text in vars(entry).values():
        assert text or text == ()
        assert text == () or text[0].strip() == text[0]
    if name != "default":
        assert re.fullmatch(r"https://(github\.com|huggingface\.co)/\S+", entry.repository)
        assert re.fullmatch(r"[0-9a-f]{40}|release \d+\.\d+\.\d+", entry.commit)
    for module in entry.implemented:
        assert importlib.util.find_spec(module), f"{name}: there is no module {module}"


@pytest.mark.parametrize("model", catalogue.list_models(), ids=lambda model: model.name)
def test_what_can_be_exported_is_implemented_somewhere(model):
    entry = provenances()[model.exporter]
    assert bool(entry.implemented) == model.supported, "fill in provenance.yaml and catalogue.json"
    assert (entry.verified_on == "Nothing yet.") == (not model.supported)


def test_pyyaml_reads_the_same():
    yaml = needs.package("yaml")
    expected = yaml.safe_load(TEXT)
    found = {
        name: {key: list(v) if isinstance(v, tuple) else v for key, v in entry.items()}
        for name, entry in parse(TEXT).items()
    }
    assert found == expected


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


@given(value=PRINTABLE, form=st.sampled_from(["  k: {}", "  k:\n    - {}", "  k: >-\n    {}"]))
def test_what_is_accepted_means_the_same_to_pyyaml(value, form):
    yaml = needs.package("yaml")
    text = "a:\n" + form.format(value)
    try:
        found = parse(text)["a"]["k"]
    except ValueError:
        return
    expected = yaml.load(text, yaml.BaseLoader)["a"]["k"]  # all scalars as strings
    assert (list(found) if isinstance(found, tuple) else found) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("key: value", 1),
        ("  key: value", 1),
        ("a:\n b: c", 2),
        ("a:\n  b: c\na:\n  b: c", 3),
        ("a:\n  b: c\n  b: d", 3),
        ("a:\n  b:\n  c: d", 2),
        ("a:\n  b: c\n    more", 2),
        ("a:\n  b: >-\n  c: d", 2),
        ("a:\n  b: >-\n      deeper", 2),
        ("a:\n  b: []\n    - c", 2),
        ("a:\n  b:\n    - c\n    d", 2),
        ("a:\n  b: {c: d}", 2),
        ("a:\n  b: [c]", 2),
        ("a:\n  b: c # comment", 2),
        ("a:\n  b: c: d", 2),
        ("a:\n  b: *c", 2),
        ("a:\n  b: !!python/name:os.system", 2),
        ('a:\n  b: "open', 2),
        ("a:\n\tb: c", 2),
        ("a:\n  b: c ", 2),
    ],
)
def test_other_yaml_is_refused_by_line(text, line):
    with pytest.raises(ValueError, match=f"line {line}"):
        parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  commit:", "  revision:"), "magenta_mt3 has the keys repository, revision"),
        (("  framework: JAX and Flax, trained with T5X; features in TensorFlow", "  framework: []"),
         "framework is \\(\\), expected a str"),
    ],
)  # fmt: skip
def test_an_entry_of_another_schema_is_refused(monkeypatch, change, message):
    changed = TEXT.replace(*change, 1)
    assert changed != TEXT
    monkeypatch.setattr("mt3_runtime.models.provenance.parse", lambda _: parse(changed))
    provenances.cache_clear()
    try:
        with pytest.raises(ValueError, match=message):
            provenances()
    finally:
        provenances.cache_clear()


def test_info_shows_the_origin(capsys):
    assert main(["models", "info", "mt3_pytorch"]) == ExitCode.OK
    text = capsys.readouterr().out
    entry = provenances()["mt3_pytorch"]
    assert isinstance(entry, Provenance)
    for value in (entry.repository, entry.commit, entry.framework, *entry.implemented):
        assert value in text
    assert entry.verified_on in " ".join(text.split())
