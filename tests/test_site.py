"""The documentation site: all pages have a place, links lead on, and what is made says what is."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mt3_runtime import cli
from mt3_runtime.models.catalogue import list_models

ROOT = Path(__file__).parents[1]


def navigation() -> list[str]:
    """Every page of mkdocs.yml, in order."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return [
        page
        for section in yaml.safe_load(text)["nav"]
        for pages in section.values()
        for page in pages
    ]


@pytest.fixture(scope="module")
def pages():
    """The module that makes pages; names of mkdocs, which only annotate, stand in."""
    annotating = {
        "mkdocs": (),
        "mkdocs.config": (),
        "mkdocs.config.defaults": ("MkDocsConfig",),
        "mkdocs.structure": (),
        "mkdocs.structure.files": ("File", "Files"),
        "mkdocs.structure.pages": ("Page",),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, held in annotating.items():
            module = ModuleType(name)
            vars(module).update(dict.fromkeys(held, object))
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts/site_pages.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_every_page_has_a_place(pages):
    there = {path.name for path in (ROOT / "docs").glob("*.md")} | set(pages.made())
    models = {f"models/{one.name}.md" for one in list_models()}
    assert set(navigation()) | models == there
    assert len(navigation()) == len(set(navigation()))


def test_every_command_is_in_the_reference(pages):
    text = pages.commands()
    for name in cli.listings():
        assert f"\n## mt3 {name}\n" in text
    assert "### mt3 models info" in text
    assert "### mt3 calibrate train" in text
    assert "--instruments" in text


def test_every_model_has_a_page_with_its_licence(pages):
    for model in list_models():
        page = pages.model_page(model)
        assert page.startswith(f"# {model.name}\n")
        assert model.licence in page
        assert not re.search(r"\n\| \w[^|\n]*\|[^|\n]*\|[^|\n]*\|", page), "a cell holds a bar"


@pytest.mark.parametrize(
    ("text", "folder", "expected"),
    [
        ("[a](../SECURITY.md)", "docs", "[a](security.md)"),
        ("[a](../README.md#figures)", "docs", "[a](index.md#figures)"),
        ("[a](SPEC.md#model)", "docs", "[a](SPEC.md#model)"),
        ("[a](docs/SPEC.md#model)", "", "[a](SPEC.md#model)"),
        ("![a](docs/demo.png)", "", "![a](demo.png)"),
        ("[a](https://x.org/b.md)", "docs", "[a](https://x.org/b.md)"),
        ("[a](#here)", "docs", "[a](#here)"),
    ],
)
def test_links_lead_on(pages, text, folder, expected):
    assert pages.relinked(text, folder) == expected


def test_links_to_files_lead_into_the_repository(pages):
    found = pages.relinked("[a](../examples/one_graph.py)", "docs")
    assert found == f"[a]({pages.REPOSITORY}/examples/one_graph.py)"


def test_the_modules_of_the_reference_exist(pages):
    for name in pages.MODULES:
        assert importlib.util.find_spec(name), name
