"""The public interface is the recorded one, and every name of it explains itself."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "public_api.py"
_spec = importlib.util.spec_from_file_location("public_api", SCRIPT)
public_api = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(public_api)

RECORD = ROOT / "docs" / "api.txt"
OBJECTS = public_api.public()
CALLABLES = {
    f"{path}.{name}" if inspect.isclass(item) else path: value
    for path, item in OBJECTS.items()
    for name, value in (vars(item).items() if inspect.isclass(item) else [("", item)])
    if (inspect.isfunction(value) or isinstance(value, classmethod | staticmethod))
    and not name.startswith("_")
}


def test_the_interface_is_the_recorded_one():
    recorded = RECORD.read_text(encoding="utf-8").splitlines()
    real = public_api.text().splitlines()
    gone, new = sorted(set(recorded) - set(real)), sorted(set(real) - set(recorded))
    said = "\n".join([*(f"- {line}" for line in gone), *(f"+ {line}" for line in new)])
    assert recorded == real, (
        f"the public interface changed:\n{said}\nIf that is meant: "
        "python scripts/public_api.py > docs/api.txt, and a line in CHANGELOG.md"
    )


def test_the_record_is_what_the_script_prints():
    printed = subprocess.check_output([sys.executable, SCRIPT], text=True, cwd=ROOT)
    assert printed == public_api.text()


def test_a_changed_signature_is_another_line():
    def before(a, b: int = 1, *, c: str | None = None) -> int: ...
    def after(a, b: int = 1, *, c: str | None = None, d: bool = False) -> int: ...

    assert public_api.signature(before) == "(a, b: int = 1, *, c: str | None = None) -> int"
    assert public_api.signature(after) != public_api.signature(before)


@pytest.mark.parametrize("path", OBJECTS)
def test_every_public_name_has_a_docstring(path):
    said = inspect.getdoc(OBJECTS[path])
    assert said
    assert said.splitlines()[0].endswith((".", ":", ";")) or len(said.splitlines()) > 1


@pytest.mark.parametrize("path", CALLABLES)
def test_every_public_callable_has_a_docstring(path):
    value = CALLABLES[path]
    assert inspect.getdoc(getattr(value, "__func__", value)), path


#: Callables whose docstring states no error: those that raise none, and those that pass on what the
#: callables named in it state.  New ones say what they raise.
STATE_NONE = {
    "mt3_runtime.Model.assemble", "mt3_runtime.Model.close", "mt3_runtime.Model.decode",
    "mt3_runtime.Model.engine", "mt3_runtime.Model.preprocess", "mt3_runtime.Model.stream",
    "mt3_runtime.Model.stream_events", "mt3_runtime.Model.transcribe", "mt3_runtime.Model.warmup",
    "mt3_runtime.Transcription.stems", "mt3_runtime.Transcription.summary",
    "mt3_runtime.Transcription.to_midi", "mt3_runtime.audio.sources.AudioStream.close",
    "mt3_runtime.audio.sources.AudioStream.with_warnings", "mt3_runtime.audio.sources.load_audio",
    "mt3_runtime.clear_cache", "mt3_runtime.engine.Engine.drain",
    "mt3_runtime.engine.Engine.health", "mt3_runtime.engine.LiveInput.cancel",
    "mt3_runtime.engine.LiveInput.end", "mt3_runtime.reading.ReaderLimits.from_dict",
    "mt3_runtime.reading.ReaderLimits.to_dict", "mt3_runtime.reading.ReaderLimits.untrusted",
    "mt3_runtime.transcribe", "mt3_runtime.transcription.Handle.age",
    "mt3_runtime.transcription.Handle.cancel", "mt3_runtime.transcription.Handle.finish",
    "mt3_runtime.transcription.Handle.time_left",
}  # fmt: skip


def test_callables_state_their_errors():
    silent = {
        path
        for path, value in CALLABLES.items()
        if "rais" not in (inspect.getdoc(getattr(value, "__func__", value)) or "").lower()
    }
    assert silent == STATE_NONE
