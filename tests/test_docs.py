"""The documentation against the code: links, commands, signatures, tables, examples."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import inspect
import json
import re
import shlex
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import numpy as np
import pytest

import mt3_runtime
from mt3_export.graphs.profiles import PROFILES
from mt3_export.variants import VARIANTS
from mt3_runtime import cli, engine, errors
from mt3_runtime.audio import sources as audio
from mt3_runtime.audio.log_mel import FILTERS, FLOOR_RULES, FRAMINGS, SCALINGS, FeatureConfig
from mt3_runtime.audio.segments import PADDINGS, SegmentConfig
from mt3_runtime.bundles import bundle, manifest
from mt3_runtime.bundles.bundle import DecodingSpec, GraphFile, Manifest, ModelSpec
from mt3_runtime.cli import ExitCode
from mt3_runtime.diagnostics.work_totals import WorkTotals
from mt3_runtime.files import formats, midi
from mt3_runtime.leakage.leakage_report import Change, LeakageReport, Stretch
from mt3_runtime.model import Model
from mt3_runtime.models import catalogue
from mt3_runtime.notes.base import SegmentReport
from mt3_runtime.notes.confidence import Weights
from mt3_runtime.notes.note import Note, Probabilities
from mt3_runtime.notes.note_events import NoteOff, NoteOn
from mt3_runtime.notes.note_rules import ASSEMBLIES, Channel, NoteRules
from mt3_runtime.notes.vocabulary import EventKind, EventRange, Vocabulary
from mt3_runtime.reading import ReaderLimits
from mt3_runtime.transcription import Handle
from tests.export.attacks import hostile_t5x, hostile_torch
from tests.export.attacks.lookalikes import LOOKALIKES
from tests.pages import (
    CODE,
    LINK,
    ROOT,
    TEXTS,
    anchors,
    blocks,
    commands,
    first_cells,
    prose,
    rows,
    section,
    shell_blocks,
)

SPEC = TEXTS["docs/SPEC.md"]
FORMAT = TEXTS["docs/bundle-format.md"]
CONTRACT = TEXTS["docs/graph-contract.md"]


# --- links and pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(TEXTS[page])):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_named_files_exist(page):
    """Paths in backquotes, where they are of this repository, and programs in shell examples."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} | {
        "mt3_runtime",
        "mt3_export",
    }
    named = set(CODE.findall(prose(TEXTS[page])))
    for body in shell_blocks(TEXTS[page]):
        named |= set(re.findall(r"\S+\.(?:py|txt)\b|scripts/\w+", body))
    for name in named:
        if re.fullmatch(r"[\w.]+/[\w./-]+", name) and name.partition("/")[0] in folders:
            where = [ROOT / name, *(ROOT / folder / name for folder in ("runtime", "export"))]
            assert any(path.exists() for path in where), f"{page}: {name}"


def test_every_page_is_reachable_from_the_readme():
    linked = set(LINK.findall(TEXTS["README.md"]))
    assert {page for page in TEXTS if page != "README.md"} <= linked


def test_pictures_are_well_formed_and_named():
    for path in (ROOT / "docs").glob("*.svg"):
        picture = ET.parse(path).getroot()  # our own file
        title = picture.find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert title.text
        shown = f"({path.relative_to(ROOT)})" in TEXTS["README.md"]
        assert shown or any(f"({path.name})" in TEXTS[page] for page in TEXTS if "/" in page)


def test_the_readme_has_its_place_for_figures():
    text = TEXTS["README.md"]
    assert text.count("<!-- figures -->") == text.count("<!-- /figures -->") == 1


# --- commands ------------------------------------------------------------------------------------


def parser_of(command: str) -> argparse.ArgumentParser:
    return cli._parser(cli.listings(), cli.listings()[command].load())


def shell_lines(text: str) -> Iterator[list[str]]:
    """Words of every `mt3` command in the shell examples."""
    for body in shell_blocks(text):
        for command in commands(body):
            if command.words[0] == "mt3":
                yield list(command.words[1:])


def mentions(text: str) -> Iterator[list[str]]:
    """Words of every `mt3 ...` in backquotes, and of those in indented examples."""
    for code in CODE.findall(prose(text)):
        if code.startswith("mt3 ") and "..." not in code:
            yield shlex.split(code)[1:]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """All option strings of a parser and of those below it, verbs that load late included."""
    found: set[str] = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        for name in getattr(action, "_verbs", ()):
            verb = argparse.ArgumentParser()
            action._verbs[name].load().add_arguments(verb)
            found |= options_of(verb)
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action._name_parser_map.items():
                fill = getattr(action, "fill", None)  # of verbs, only the chosen one is complete
                found |= options_of(below if fill is None else fill(name))
    return found


@pytest.mark.parametrize("page", [page for page in TEXTS if list(shell_lines(TEXTS[page]))])
def test_shell_examples_are_accepted(page, capsys):
    refused = {}
    for words in shell_lines(TEXTS[page]):
        try:
            parser_of(words[0]).parse_args(words)
        except SystemExit:
            refused[shlex.join(words)] = capsys.readouterr().err
    assert refused == {}


@pytest.mark.parametrize("page", [page for page in TEXTS if list(mentions(TEXTS[page]))])
def test_mentioned_commands_and_options_exist(page):
    known = cli.listings()
    for words in mentions(TEXTS[page]):
        if words[0] in ("COMMAND", "--help", "--version"):
            continue
        for name in words[0].split("|"):
            assert name in known, f"{page}: mt3 {' '.join(words)}"
        options = [word for word in words if word.startswith("-") and word != "-"]
        if options:
            assert set(options) <= options_of(parser_of(words[0])), f"{page}: {words}"


@pytest.mark.parametrize(
    "name",
    [
        "transcribe",
        "tag",
        "genre",
        "assess",
        "serve",
        "models",
        "export",
        "evaluate",
        "plot",
        "bench",
        "doctor",
    ],
)
def test_every_option_is_in_the_specification(name):
    parser = parser_of(name)
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    text = section(SPEC, f"mt3 {name}")
    for option in options_of(commands.choices[name]) - {"-h", "--help"}:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), option
    for option in CODE.findall(text):
        if option.startswith("-") and option != "-":
            assert option.split()[0] in options_of(commands.choices[name]), option


def test_the_table_of_commands():
    loadable = [name for name, listing in cli.listings().items() if listing.source]
    found = first_cells(section(SPEC, "Command line"))
    assert sorted(found) == sorted(f"mt3 {name}" for name in loadable)


def test_exit_codes():
    table = [row[:2] for row in rows(section(SPEC, "Exit codes"))[1:]]
    assert table == [[str(int(code)), f"`{code.name}`"] for code in ExitCode]


# --- Python --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(TEXTS[page], "python")])
def test_python_examples_are_python_that_imports_what_exists(page):
    faults = []
    for body in blocks(TEXTS[page], "python"):
        try:
            tree = ast.parse(body)
        except SyntaxError as error:
            faults.append(f"{error}: {body}")
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mt3_"):
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                faults += [f"{node.module} has no {name}" for name in names]
    assert faults == []


def test_examples_do_import_what_is_ours():
    assert "from mt3_runtime import" in "".join(blocks(TEXTS["README.md"], "python"))


def test_every_public_name_is_specified():
    for name in mt3_runtime.__all__:
        assert re.search(rf"`(mt3_runtime\.)?{name}`|(def|class) {name}\b", SPEC), name


def definitions() -> dict[str, ast.stmt]:
    """Functions and classes of the specification, by name."""
    found = {}
    for body in blocks(SPEC, "python"):
        for node in ast.parse(body).body:
            assert isinstance(node, ast.FunctionDef | ast.ClassDef)
            found[node.name] = node
    return found


def source_of(item: object) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(item))).body[0]


def signature(node: ast.stmt) -> str:
    assert isinstance(node, ast.FunctionDef)
    return f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


FUNCTIONS = {
    name: getattr(module, name)
    for module, names in (
        (mt3_runtime, ("load_model", "transcribe", "clear_cache")),
        (mt3_runtime, ("list_models", "get_model_info", "download_model")),
        (audio, ("open_audio", "open_blocks", "load_audio")),
        (formats, ("render", "load_notes")),
        (midi, ("to_midi", "from_midi")),
    )
    for name in names
}
CLASSES = {
    item.__name__: item
    for item in (
        Model,
        mt3_runtime.Transcription,
        mt3_runtime.Note,
        mt3_runtime.Progress,
        Probabilities,
        SegmentReport,
        LeakageReport,
        Change,
        Stretch,
        catalogue.ModelInfo,
        catalogue.ModelFile,
        engine.Engine,
        engine.LiveInput,
        engine.Health,
        WorkTotals,
        ReaderLimits,
        Handle,
        NoteOn,
        NoteOff,
    )
}


def test_nothing_else_is_defined_in_the_specification():
    assert set(definitions()) == set(FUNCTIONS) | set(CLASSES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_of_functions(name):
    source = source_of(inspect.unwrap(FUNCTIONS[name]))
    assert signature(definitions()[name]) == signature(source)


@pytest.mark.parametrize("name", CLASSES)
def test_methods_of_classes(name):
    specified, real = definitions()[name], CLASSES[name]
    methods = {
        key
        for key, value in vars(real).items()
        if inspect.isfunction(value) and not key.startswith("_")
    }
    found = {node.name: node for node in specified.body if isinstance(node, ast.FunctionDef)}
    assert set(found) == methods
    for method, node in found.items():
        assert signature(node) == signature(source_of(getattr(real, method))), method


RECORDS = [n for n, c in CLASSES.items() if dataclasses.is_dataclass(c) or issubclass(c, tuple)]


@pytest.mark.parametrize("name", RECORDS)
def test_fields_of_dataclasses(name):
    def fields(node: ast.stmt) -> list[str]:
        assert isinstance(node, ast.ClassDef)
        return [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]

    specified, real = definitions()[name], source_of(CLASSES[name])
    assert fields(specified) == fields(real)
    assert [ast.unparse(d) for d in specified.decorator_list] == [
        ast.unparse(d) for d in real.decorator_list
    ]


def test_limits_of_readers():
    """The numbers of the page, in its units, by column."""
    page = section(TEXTS["docs/engine.md"], "Readers and limits")
    cells = [row.strip("| ").split("|") for row in page.splitlines() if row.startswith("|")]
    for column, limits in ((1, ReaderLimits()), (2, ReaderLimits.untrusted())):
        rows = {row[0].strip(): row[column].strip() for row in cells if len(row) > column}
        assert rows["memory, beyond what a process has"] == (
            "1 GiB" if column == 1 else f"{limits.memory_bytes >> 20} MiB"
        )
        assert limits.memory_bytes in (1 << 30, 256 << 20)
        most, more = f"{limits.cpu_seconds:g} s", f"{limits.cpu_seconds_per_minute:g} s a minute"
        assert rows["processor time"].startswith(f"{most}, and {more}")
        assert rows["wait for the next part"] == f"{limits.wait_seconds:g} s"
        assert rows["open files"] == str(limits.open_files)
        size = f"{limits.file_bytes >> 20} MiB" if limits.file_bytes else ""
        assert rows["size of the file"] == size
        hours = f"{limits.audio_seconds / 3600:g} h" if limits.audio_seconds else ""
        assert rows["length"] == hours
        for name in limits.formats or ():
            assert name.removeprefix("Ogg ") in rows["formats"]


def test_attributes_of_a_model(tiny_model):
    table = section(SPEC, "Model")
    names = first_cells(table)
    assert {"path", "info", "device", "sample_rate", "auto_filter", "decoding"} == set(names)
    assert all(hasattr(tiny_model, name) for name in names)


def test_error_classes():
    classes = {
        name: item
        for name, item in vars(errors).items()
        if inspect.isclass(item) and issubclass(item, errors.MT3Error)
    }
    table = {CODE.findall(row[0])[0]: row for row in rows(section(SPEC, "Errors"))[1:]}
    assert list(table) == list(classes)
    for name, row in table.items():
        assert CODE.findall(row[1]) == [base.__name__ for base in classes[name].__bases__], name
        assert len(row) == 3


def test_formats():
    table = {CODE.findall(row[0])[0]: row for row in rows(section(SPEC, "Output formats"))[1:]}
    assert tuple(table) == formats.FORMATS
    for name, row in table.items():
        suffixes = [suffix for suffix, meant in formats.SUFFIXES.items() if meant == name]
        assert CODE.findall(row[1]) == suffixes
    assert ",".join(formats.CSV_FIELDS) in SPEC


def test_the_json_document_is_one_that_is_written():
    (body,) = blocks(SPEC, "json")
    example = json.loads(body)
    notes = formats.parse_json(body)
    report = SegmentReport(**example["segments"][0])
    (gone,) = example["leakage"]["changes"]
    note = Note(
        gone["onset"], gone["offset"], gone["pitch"], 127, gone["program"],
        confidence=gone["confidence"],
    )  # fmt: skip
    leakage = LeakageReport(
        "auto",
        2,
        (Change(note, None, gone["reason"]),),
        tuple(Stretch(**stretch) for stretch in example["leakage"]["stretches"]),
    )
    result = mt3_runtime.Transcription(
        tuple(notes),
        (report,),
        example["duration"],
        example["model"],
        example["token_digest"],
        leakage=leakage,
    )
    assert json.loads(formats.render(result, "json")) == example


# --- environment variables -----------------------------------------------------------------------


def variables(*folders: str) -> set[str]:
    """All names that begin with MT3_ in the sources of some folders."""
    found: set[str] = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".sh", ""):
                text = path.read_text(encoding="utf-8", errors="ignore")
                found |= set(re.findall(r"\bMT3_[A-Z_]*[A-Z]\b", text))
    return found


def test_variables_of_the_product_are_specified():
    table = first_cells(section(SPEC, "Environment variables"))
    assert sorted(table) == sorted(variables("runtime", "export", "engines"))


@pytest.mark.parametrize("page", TEXTS)
def test_variables_in_the_docs_exist(page):
    theirs = {"MT3_CHECKPOINT_DIR"}  # of mt3-infer
    known = variables("runtime", "export", "engines", "tests", "scripts", "benchmarks", ".ci")
    assert set(re.findall(r"\bMT3_[A-Z_]*[A-Z]\b", TEXTS[page])) <= known | theirs


def test_names_of_modules_and_tests_exist():
    """Bare file names in the tables of the two pages that walk through the sources."""
    known = {
        path.name
        for folder in ("runtime", "export", "tests")
        for path in (ROOT / folder).rglob("*")
    }
    for page in ("docs/ARCHITECTURE.md", "docs/parity.md"):
        for name in CODE.findall(prose(TEXTS[page])):
            if re.fullmatch(r"\w+\.(py|json|txt)", name):
                assert name in known, f"{page}: {name}"


@pytest.mark.parametrize("page", TEXTS)
def test_dotted_names_lead_somewhere(page):
    """`mt3_package.module.name` in prose and commands; groups of entry points are no modules."""
    groups = {"commands", "backends", "checks", "calibrate", "routes"}
    for name in set(re.findall(r"\bmt3_[a-z]+(?:\.\w+)+", TEXTS[page])) - {"mt3_pytorch.pth"}:
        package, *rest = name.split(".")
        if rest[-1] in ("py", "yaml", "json") or (len(rest) == 1 and rest[0] in groups):
            continue
        found = importlib.import_module(package)
        for part in rest:
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


def test_the_number_of_attacks():
    attacks = [*hostile_t5x.ATTACKS, *hostile_torch.ATTACKS, *LOOKALIKES]
    assert f"some {len(attacks) // 20 * 20}" in " ".join(TEXTS["SECURITY.md"].split())


# --- bundle format and graph contract ------------------------------------------------------------


def test_the_example_manifest_is_one():
    (body,) = blocks(FORMAT, "json")
    example = Manifest.from_json(body.encode(), "bundle-format.md")
    variant = VARIANTS[example.variant]
    for part in (
        "features",
        "segments",
        "vocabulary",
        "notes",
        "decoding",
        "licence",
        "family",
        "confidence",
    ):
        assert getattr(example, part) == getattr(variant, part), part


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("features", [FeatureConfig]),
        ("segments", [SegmentConfig]),
        ("vocabulary", [Vocabulary, EventRange]),
        ("confidence", [Weights]),
        ("notes", [NoteRules, Channel]),
        ("decoding", [DecodingSpec]),
        ("model", [ModelSpec]),
        ("graphs", [GraphFile]),
    ],
)
def test_every_key_of_the_manifest_is_specified(heading, kinds):
    keys = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    assert set(first_cells(section(FORMAT, heading))) == keys


def test_every_top_level_key_is_specified():
    keys = [field.name for field in dataclasses.fields(Manifest)]
    assert first_cells(section(FORMAT, "Top level")) == ["format", "version", *keys]


def test_words_of_the_manifest_are_specified():
    words = [*EventKind, *PADDINGS, manifest.FORMAT, bundle.EXPORT_ID_KEY]
    for kinds in (FRAMINGS, FILTERS, FLOOR_RULES, SCALINGS, ASSEMBLIES, *ASSEMBLIES.values()):
        words += [f"`{word}`" for word in kinds]
    for word in [*words, manifest.PLAIN_NAME.pattern, f"{bundle.MAX_MANIFEST_BYTES:,}"]:
        assert word in FORMAT, word
    assert f"version {manifest.FORMAT_VERSION}" in FORMAT.splitlines()[0]


def test_the_export_id_is_computed_as_specified(tiny_bundle):
    manifest = bundle.Bundle(tiny_bundle).manifest
    import hashlib

    (lines,) = blocks(section(FORMAT, "Export id"), "text")
    filled = lines.strip("\n")
    for key, value in {
        "source.digest": manifest.source["digest"],
        "variant": manifest.variant,
        "exporter": manifest.exporter,
        "precision.weights": manifest.precision.weights,
    }.items():
        filled = filled.replace(f"<{key}>", value)
    assert hashlib.sha256(filled.encode()).hexdigest()[:32] == manifest.export_id


def test_the_table_of_profiles(tiny_bundle):
    import onnx

    table = {CODE.findall(row[0])[0]: row for row in rows(section(CONTRACT, "Profiles"))[1:]}
    assert list(table) == list(PROFILES)
    manifest = bundle.Bundle(tiny_bundle).manifest
    for graph in manifest.graphs:
        _, opset, version, domains, cache, cross, _ = table[graph.profile]
        model = onnx.load(tiny_bundle / graph.file)
        found = {item.domain: item.version for item in model.opset_import}
        assert str(graph.opset) == opset == str(found.pop(""))
        assert str(model.ir_version) == version
        assert domains == (", ".join(f"`{d}` {v}" for d, v in found.items()) or "none")
        assert cache == f"`{graph.cache}`"
        transposed = "[N, H, D, T]" if graph.cross_key_transposed else "[N, H, T, D]"
        assert cross == f"`{transposed}`"


@pytest.mark.parametrize("role", ["Encoder", "Decoder step"])
def test_tensors_of_the_graphs(role, tiny_bundle):
    """Names, types and shapes in the tables against the graphs of a two-layer model."""
    import onnx

    declared = {}
    for row in rows(section(CONTRACT, role))[1:]:
        for name in CODE.findall(row[0]):
            declared[row[0].split()[0], re.sub(r"_i$", "", name)] = row[1]
    for graph in bundle.Bundle(tiny_bundle).manifest.graphs:
        if graph.role == role.split()[0].lower():
            model = onnx.load(tiny_bundle / graph.file).graph
            found = {}
            for way, values in (("in", model.input), ("out", model.output)):
                for value in values:
                    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
                    word = kind.lower() + ("32" if kind == "FLOAT" else "")
                    found[way, re.sub(r"_\d+$", "", value.name)] = word
            assert found == declared


@pytest.mark.parametrize("profile", ["cpu", "portable"])
def test_the_loop_of_the_contract(profile, tiny_bundle, tiny_model, audio):
    """The pseudo-code of the page, line by line, gives the tokens the runtime gives."""
    import onnxruntime

    opened = bundle.Bundle(tiny_bundle)
    m = opened.manifest
    enc, dec = (
        onnxruntime.InferenceSession(tiny_bundle / opened.graph(role, profile).file)
        for role in ("encoder", "decoder")
    )
    features = tiny_model.preprocess(audio)[:3]
    rows, cap = len(features), 256  # instead of max_tokens: no segment is longer, all is faster
    names = opened.graph("encoder", profile).outputs
    cross = dict(zip(names, enc.run(names, {"features": features}), strict=True))
    cache = {
        f"past_{part}_{layer}": np.zeros((rows, m.model.heads, cap, m.model.head_dim), np.float32)
        for layer in range(m.model.layers)
        for part in ("key", "value")
    }
    ids = np.full((rows, 1), m.decoding.start_id, np.int64)
    positions = np.zeros(rows, np.int32)
    allowed = np.ones((rows, m.model.vocab_size), np.bool_)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    running = set(range(rows))
    names = opened.graph("decoder", profile).outputs
    while running and positions[0] < cap:
        feeds = {"token_ids": ids, "positions": positions, "allowed": allowed, **cross, **cache}
        out = dict(zip(names, dec.run(names, feeds), strict=True))
        cache = {name: out[name.replace("past", "present")] for name in cache}
        for row in sorted(running):
            tokens[row].append(int(out["top_ids"][row, 0]))
            if tokens[row][-1] == m.decoding.eos_id:
                running.remove(row)
        ids = out["next_ids"]
        positions = positions + np.int32(1)
    assert not running
    assert tokens == [found.tokens.tolist() for found in tiny_model.forward(features)]
