"""Reads pip-audit's report: fails for a known hole, and for a package that was not looked up.

    python scripts/advisories.py REPORT.json

pip-audit ends well where the index serves no advisories; silence is no answer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

OURS = frozenset({"mt3-runtime", "mt3-runtime-core"})


def main(words: list[str]) -> int:
    """0 if all were looked up and none has a known hole; MT3_AUDIT_OFFLINE=1 bears silence."""
    packages = json.loads(Path(words[0]).read_bytes())["dependencies"]
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions'])}"
        for one in packages
        for hole in one.get("vulns", ())
    ]
    missed = [one["name"] for one in packages if "skip_reason" in one and one["name"] not in OURS]
    for line in holes:
        print(f"known hole: {line}", file=sys.stderr)
    if missed:
        print(
            f"NOT LOOKED UP: {len(missed)} of {len(packages)} packages; the index has no advisories"
            f" ({', '.join(sorted(missed)[:5])} ...)",
            file=sys.stderr,
        )
    print(f"{len(packages) - len(missed)} packages looked up, {len(holes)} known holes")
    silent = missed and os.environ.get("MT3_AUDIT_OFFLINE") != "1"
    return int(bool(holes or silent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
