"""Pages of the documentation site that are no files of docs; a hook of mkdocs (mkdocs.yml).

Made are: the first page and those of the files beside README, the reference of commands from their
parsers, the reference of the Python interface, and a page for each model of the catalogue.  Links
to files that the site has not go to the repository.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mt3_runtime import cli
from mt3_runtime.models import catalogue
from mt3_runtime.models.provenance import provenances

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = f"{PROJECT['urls']['Repository']}/blob/main"

#: Files of the repository's root, and the pages that they are.
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}

#: Modules of the reference, from what most people use to what extends the project.
MODULES = (
    "mt3_runtime.loading", "mt3_runtime.model", "mt3_runtime.transcription",
    "mt3_runtime.notes.note", "mt3_runtime.engine", "mt3_runtime.reading.reader_limits",
    "mt3_runtime.audio.sources", "mt3_runtime.files.formats", "mt3_runtime.files.midi",
    "mt3_runtime.models.catalogue", "mt3_runtime.bundles.bundle", "mt3_runtime.errors",
    "mt3_runtime.extensions.service_routes", "mt3_runtime.extensions.evidence",
)  # fmt: skip

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def relinked(text: str, folder: str) -> str:
    """A text of one folder of the repository, with links that lead on from a page of the site."""

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if path in ROOT_PAGES:
            return ROOT_PAGES[path]
        if path.startswith("docs/") and (ROOT / path).is_file():
            return path.removeprefix("docs/")
        return f"{REPOSITORY}/{path}"

    return _LINK.sub(target, text)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its verbs, verbs that load late included."""
    yield parser
    for action in parser._actions:  # noqa: SLF001  argparse shows them nowhere else
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            fill = getattr(action, "fill", None)
            for name, below in action._name_parser_map.items():  # noqa: SLF001
                yield from parsers(below if fill is None else fill(name))


def commands() -> str:
    """The reference of all commands: what `--help` says of each."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands", "What `mt3 COMMAND --help` says, of every command."]
    for name, listing in sorted(cli.listings().items()):
        chosen = listing.load()
        whole = cli._parser({name: listing}, chosen)  # noqa: SLF001
        (action,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001
        for number, parser in enumerate(parsers(action.choices[name])):
            parts.append(f"{'###' if number else '##'} {parser.prog}")
            parts.append(f"```text\n{parser.format_help().rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def python_interface() -> str:
    """The reference of the Python interface, which mkdocstrings fills in."""
    parts = [
        "# Python interface",
        "From docstrings; the [specification](SPEC.md) is what is promised.",
    ]
    parts += [f"::: {module}" for module in MODULES]
    return "\n\n".join(parts) + "\n"


def model_page(model: catalogue.ModelInfo) -> str:
    """What is known about one model of the catalogue."""
    origin = provenances()[model.exporter]
    sizes = [file.size for file in model.files]
    known = [size for size in sizes if size is not None]
    size = f"{sum(known) / 1e6:.0f} MB" if len(known) == len(sizes) else "unknown"
    rows = {
        "what": model.summary,
        "also called": ", ".join(f"`{name}`" for name in model.aliases),
        "family": model.family,
        "licence of the weights": model.licence,
        "doubts about it": model.licence_note,
        "taught on": model.trained_on,
        "source": model.source,
        "checkpoint": f"{size}; {model.digests}",
        "original": f"{origin.repository} at `{origin.commit}`",
        "code": f"{origin.licence}; {origin.framework}",
        "verified here": origin.verified_on,
        "note": " ".join(filter(None, [model.note, origin.notes])),
    }
    table = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items() if value]
    return "\n".join([
        f"# {model.name}", "", "| | |", "|---|---|", *table, "",
        "Figures: [parity](../parity.md), [benchmarks](../benchmarks.md),",
        "[evaluation](../evaluation.md).", "",
    ])  # fmt: skip


def models() -> str:
    """The list of all models."""
    rows = [
        f"| [{one.name}](models/{one.name}.md) | {one.family} | {one.summary} | {one.licence} |"
        for one in catalogue.list_models()
    ]
    head = (
        "The [default model](default-model.md) is in the package; these are published checkpoints."
    )
    table = ["| name | family | what | licence |", "|---|---|---|---|", *rows]
    return "\n".join(["# Models", "", head, "", *table, ""])


def made() -> dict[str, str]:
    """All pages that are made, by their place."""
    pages = {
        page: relinked((ROOT / name).read_text(encoding="utf-8"), "")
        for name, page in ROOT_PAGES.items()
    }
    pages |= {"commands.md": commands(), "api.md": python_interface(), "models.md": models()}
    return pages | {f"models/{one.name}.md": model_page(one) for one in catalogue.list_models()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of models among the others."""
    for section in config.nav or ():
        if "Models" in section:
            section["Models"] += [f"models/{one.name}.md" for one in catalogue.list_models()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    for place, text in made().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Leads links out of docs to pages of the site, or into the repository."""
    if page.file.generated_by is not None:
        return markdown
    return relinked(markdown, "docs")
