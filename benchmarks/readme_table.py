"""Renders README's figures from the kept results, without measuring anything.

    python benchmarks/readme_table.py

Contract: `render` is a pure function of benchmarks/results/readme.json.  The words are in
readme_table.md, rounding is here, and numbers are in the result only.  `write` puts the table
between the marks of README.md and changes nothing else.  Needs the standard library only.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
WORDS = Path(__file__).with_suffix(".md")
MARKS = ("<!-- figures -->\n", "<!-- /figures -->")

#: Cores of other work while a benchmark begins, above which the caption says so.
QUIET = 0.25


def main() -> int:
    """Writes the table into README.md, or says that it is there already."""
    print("README.md: written" if write() else "README.md has this table already")
    return 0


def write(results: Path = RESULTS, readme: Path = README) -> bool:
    """Puts the table between the marks; returns whether that changed anything."""
    text = readme.read_text(encoding="utf-8")
    found = replaced(text, render(load(results)))
    readme.write_text(found, encoding="utf-8")
    return found != text


def load(results: Path = RESULTS) -> dict[str, Any]:
    """The kept result; raises `SystemExit` where there is none."""
    path = results / "readme.json"
    if not path.exists():
        raise SystemExit(f"there is no {path}; make it with python benchmarks/readme.py")
    return dict(json.loads(path.read_bytes()))


def replaced(text: str, table: str) -> str:
    """A text with the table between its marks; raises `SystemExit` if it has none."""
    before, mark, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise SystemExit(f"README.md lacks {MARKS[0].strip()} or {MARKS[1]}")
    return before + mark + table + end + after


def render(kept: Mapping[str, Any]) -> str:
    """The tables and their captions."""
    parts = kept["parts"]["readme"]["benchmarks"]
    versions = {name: found for part in parts.values() for name, found in part["versions"].items()}
    busy = max(part["busy_before"] for part in parts.values())
    beside = f" Not quiet: other work took up to {busy:.1f} cores." if busy > QUIET else ""
    names = {name: part["figures"] for name, part in parts.items()}
    facts = {
        "machine": machine(kept["machine"]),
        "day": day(kept["date"]),
        "commit": ", ".join(sorted({part["commit"][:10] for part in parts.values()})),
        "beside": beside,
        "yourmt3_version": versions["yourmt3"],
    }
    return Words().vformat(WORDS.read_text(encoding="utf-8"), (), versions | names | facts)


class Words(string.Formatter):
    """Formats ``{a.b:s}``, which is ``a["b"]`` as seconds, and ``{a.b/c.d:x}``, their ratio."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        del args
        values = []
        for path in field_name.split("/"):
            value: Any = kwargs
            if path in kwargs:  # the name of a package may have dots
                value = kwargs[path]
            else:
                for key in path.split("."):
                    value = value[key]
            values.append(value)
        return (values[0] if len(values) == 1 else values[0] / values[1]), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if not format_spec:
            return str(value)
        several = value if isinstance(value, list) else [value]
        texts = [FORMATS[format_spec](one) for one in several]
        unit = {text.partition(" ")[2] for text in texts}
        if len(texts) > 1 and len(unit) == 1:  # 1 / 2 ms, not 1 ms / 2 ms
            texts[:-1] = [text.partition(" ")[0] for text in texts[:-1]]
        return " / ".join(texts)


def seconds(value: float) -> str:
    """0.12 s, 1.2 s, 12.3 s, 123 s."""
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def times(value: float) -> str:
    """0.85x, 1.2x, 12x, 123x."""
    return f"{value:.2f}x" if value < 1 else f"{value:.1f}x" if value < 10 else f"{value:.0f}x"


def percent(value: float) -> str:
    """Whole, unless that would say all or next to nothing of what is not."""
    near = 0 < value < 0.03 or 0.985 < value < 1
    return f"{100 * value:.{int(near)}f} %"


FORMATS = {
    "s": seconds,
    "x": times,
    "%": percent,
    "ms": lambda value: f"{1000 * value:.1f} ms",
    "MB": lambda value: f"{value / 1e6:.0f} MB",  # of files
    "MiB": lambda value: f"{value / 2**20:.0f} MiB",  # of memory
    "f1": lambda value: f"{value:.3f}",
    "length": lambda value: f"{value / 60:g} minutes" if value > 60 else f"{value:g} s",
}


def machine(found: Mapping[str, Any]) -> str:
    """The processor in words, and those flags that decide which kernels run."""
    name = re.sub(r"\((R|TM|tm)\)", "", found["cpu"])
    flags = ", ".join(found.get("flags", ()))
    return f"{found['cores']} cores of {' '.join(name.split())}" + (f" ({flags})" if flags else "")


def day(date: str) -> str:
    """Of a time in ISO 8601."""
    return str(dt.datetime.fromisoformat(date).date())


if __name__ == "__main__":
    sys.exit(main())
