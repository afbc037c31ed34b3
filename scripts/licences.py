"""Licence report of a CycloneDX file: fails where a licence cannot be combined with Apache-2.0.

    python scripts/licences.py SBOM.json... -o REPORT.md

`.ci/audit.toml` corrects what packages state, and accepts single ones, with reasons and dates.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

RULES = Path(__file__).resolve().parents[1] / ".ci" / "audit.toml"

#: What may be passed on beside Apache-2.0; the LGPL as a library of its own, the MPL by file.
COMPATIBLE = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "LGPL-2.1-or-later",
    "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
})  # fmt: skip

#: An SPDX expression, and nothing that a person wrote.
_EXPRESSION = re.compile(r"[\w.+-]+(?: (?:AND|OR|WITH) [\w.+-]+)*")

#: Trove classifiers, for packages that state nothing else.
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def stated(component: dict[str, Any]) -> str:
    """The licence a component states, as an SPDX expression where it can be read as one."""
    found = []
    for entry in component.get("licenses", ()):
        inner = entry.get("license", {})
        text = entry.get("expression") or inner.get("id") or inner.get("name", "")
        found.append(CLASSIFIERS.get(text.rpartition(" :: ")[2], text))
    # An identifier says more than the classifier beside it.
    exact = [text for text in found if _EXPRESSION.fullmatch(text)]
    return " AND ".join(dict.fromkeys(exact or found))


def compatible(expression: str) -> bool:
    """Whether one alternative of an expression has nothing but compatible licences."""
    if not expression:
        return False
    plain = expression.replace("(", " ").replace(")", " ")
    parts = [re.split(r"\s+OR\s+", part.strip()) for part in re.split(r"\s+AND\s+", plain)]
    return all(any(name.strip() in COMPATIBLE for name in part) for part in parts)


def judge(
    components: list[dict[str, Any]], rules: list[dict[str, Any]]
) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Rows of the report (package, version, licence, verdict), and what is wrong, line by line."""
    known = {rule["package"]: rule for rule in rules}
    rows, wrong = [], []
    for one in sorted(components, key=lambda component: component["name"].lower()):
        name, rule = one["name"], known.get(one["name"], {})
        licence = rule.get("licence") or stated(one)
        verdict = f"{rule['reason']} ({rule['date']})" if rule else "as stated"
        if not (compatible(licence) or rule.get("accept")):
            verdict = "INCOMPATIBLE" if licence else "UNKNOWN"
            wrong.append(f"{name} {one.get('version', '')}: {licence or 'states no licence'}")
        rows.append((name, one.get("version", ""), licence, verdict))
    there = {one["name"] for one in components}
    idle = sorted(known.keys() - there)
    wrong += [f"{name}: the entry in {RULES.name} concerns no package" for name in idle]
    return rows, wrong


def main(words: list[str] | None = None) -> int:
    """Writes the report; 1 if a licence is incompatible or unknown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sbom", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(words)
    found = {
        (one["name"], one.get("version")): one
        for path in args.sbom
        for one in json.loads(path.read_bytes())["components"]
    }
    rules = tomllib.loads(RULES.read_text(encoding="utf-8")).get("licence", [])
    rows, wrong = judge(list(found.values()), rules)
    head = ("package", "version", "licence", "why")
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * 4, *rows)]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in wrong:
        print(f"licence: {line}", file=sys.stderr)
    print(f"{len(rows)} packages, {len(wrong)} licences to look at: {args.out}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
