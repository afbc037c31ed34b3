"""A plug-in provider's encoder beside ours: tokens, speed and, with ``--gate``, accuracy.

Run it with the Python of an environment that has the plug-in's package.  Every side lives in a
process of its own and is asked in turns: ready features to tokens, and the encoder alone, whose
processor time other work disturbs least.  ``--gate`` compares transcriptions of the check part of
the material (docs/precision.md) with those of the exact bundle, by the gate ``relaxed``; the
environment then needs the extra ``calibration`` and sounds as well.

    python benchmarks/plugins.py --bundle exact/ --plugin openvino --other fast/
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from common import STATE, Worker, medians, talk
from materials import bundle, parser, report

from mt3_runtime.backends.ort_plugin import OrtPluginBackend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model


class Side(NamedTuple):
    """A bundle, and the plug-in and arithmetic of its encoder; None for the CPU provider's."""

    name: str
    bundle: Path
    plugin: tuple[str, str] | None = None


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--plugin", default="openvino", help="name of the plug-in")
    add("--arithmetic", nargs="+", default=["fp32", "bf16"], help="what it is asked for")
    add("--other", type=Path, action="append", default=[], help="bundle for the CPU provider")
    add("--recording", default="violin_solo.mp3", help="one of the folder of recordings")
    add("--segments", type=int, help="its first so many; all by default")
    add("--threads", type=int, default=usable_cores(), help="threads of every side")
    add("--gate", action="store_true", help="judge accuracy as well, which takes minutes")
    add("--takes", type=int, default=1, help="takes that the gate judges by; 6 is the usual")
    options = made.parse_args()
    exact = bundle(options)
    sides = [Side("cpu", exact)]
    sides += [
        Side(f"plugin:{options.plugin} {kind}", exact, (options.plugin, kind))
        for kind in options.arithmetic
    ]
    sides += [Side(f"cpu ({path.name})", path) for path in options.other]
    with report(options, recording=options.recording, threads=options.threads) as (result, lines):
        measure(options, sides, result)
        lines.extend(text(result))
        if options.gate:
            result["gate"] = judged(sides[1:], exact, options)
            lines.extend(["", *gate_text(result["gate"])])


def measure(options: Any, sides: list[Side], result: dict[str, Any]) -> None:
    """Asks the sides in turns."""
    workers = {side.name: Worker("ours.py") for side in sides}
    result["load"] = {
        side.name: workers[side.name].ask(
            "load", bundle=str(side.bundle), threads=options.threads, plugin=side.plugin
        )
        for side in sides
    }
    for worker in workers.values():
        worker.ask("features", audio=str(options.audio / options.recording),
                   out=str(STATE / "features.npy"), segments=options.segments)  # fmt: skip
    result["networks"], result["encoders"] = networks, encoders = (
        defaultdict(list),
        defaultdict(list),
    )
    for name in options.runs * list(workers):
        networks[name].append(workers[name].ask("forward"))
        encoders[name].append(workers[name].ask("encode"))
    for worker in workers.values():
        worker.close()


def text(result: dict[str, Any]) -> list[str]:
    """The table; the first side is ours."""
    ours = next(iter(result["networks"]))
    said = result["networks"][ours][0]["each"]
    rows = [["side", "features to tokens", "faster", "encoder, CPU ms a segment", "faster",
             "identical segments", "load s", "token digest"]]  # fmt: skip
    for side, networks in result["networks"].items():
        took, first = medians(networks), medians(result["networks"][ours])
        least, base = (
            min(answer["cpu_ms"] for answer in result["encoders"][name]) for name in (side, ours)
        )
        same = sum(a == b for a, b in zip(said, networks[0]["each"], strict=True))
        rows.append(
            [side, f"{took:.2f} s", f"{first / took:.2f} x", f"{least:.1f}",
             f"{base / least:.2f} x", f"{same / len(said):.1%}",
             f"{result['load'][side]['seconds']:.2f}", networks[0]["digest"][:14]]
        )  # fmt: skip
    about = f"{len(said)} segments; median of {len(networks)} rounds; of encoders the least"
    return [f"{result['recording']}: {about}", *columns(rows)]


def judged(sides: list[Side], exact: Path, options: Any) -> dict[str, Any]:
    """What the gate says of each side."""
    from mt3_quantisation.gates.exact_bundle import Source, transcribed  # noqa: PLC0415  an extra
    from mt3_quantisation.gates.gate import GATES  # noqa: PLC0415
    from mt3_quantisation.gates.material import Material  # noqa: PLC0415
    from mt3_quantisation.gates.measure import compared  # noqa: PLC0415

    source = Source(Bundle(exact), threads=options.threads)
    excerpts = [each for each in Material().check if each.take < options.takes]
    talk(f"the exact bundle listens to {len(excerpts)} excerpts")
    heard = source.listen(excerpts)
    found: dict[str, Any] = {"takes": options.takes}
    for side in sides:
        talk(f"{side.name} listens")
        with opened(side, options.threads) as model:
            other = transcribed(model, excerpts, [each.features for each in heard])
        result = compared(heard, other)
        faults = GATES["relaxed"](result.changes)
        found[side.name] = {"figures": result.figures, "faults": list(faults)}
    return found


def opened(side: Side, threads: int) -> Model:
    """A side's model in this process."""
    if side.plugin is None:
        return load_model(side.bundle, device="cpu", threads=threads)
    made, (name, kind) = Bundle(side.bundle), side.plugin
    return Model(made, OrtPluginBackend(made, name, threads=threads, arithmetic=kind))


def gate_text(found: dict[str, Any]) -> list[str]:
    """A line per side: its figures, and what it failed by."""
    sides = {name: each for name, each in found.items() if name != "takes"}
    keys = list(next(iter(sides.values()))["figures"])
    rows = [["side", *keys, "gate relaxed"]]
    for name, each in sides.items():
        verdict = "; ".join(each["faults"]) or "passed"
        rows.append([name, *(f"{each['figures'][key]:.4f}" for key in keys), verdict])
    return [f"check part, {found['takes']} takes", *columns(rows)]


if __name__ == "__main__":
    main()
