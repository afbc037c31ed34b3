"""What a thousand hours of audio cost on a CPU, an RTX card and an H200, for docs/scale.md.

    python benchmarks/costs.py [--prices 0.10,0.45,3.50]

The CPU's speed is measured (results/readme.json).  No GPU of ours has been measured: their speeds
are computed, as the least of three limits, each from sizes of the network and figures of a data
sheet.

    reading     cores * what a core decodes, listens to and makes features of (measured) memory
    bandwidth / bytes that a second of audio needs: for each token the keys and values of
                its segment, and its share of the decoder's weights
    launches    rows / seconds that the kernels of a step take to begin, recorded as a graph
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

README = Path(__file__).parent / "results" / "readme.json"

#: Seconds of audio that one core reads in a second, the lower end of what benchmarks/reading.py
#: found.
READING = 210.0

#: Layers, inner width of the attention, frames of a segment, bytes of a number of Magenta's MT3.
LAYERS, WIDTH, FRAMES, NUMBER = 8, 384, 256, 4

#: Bytes of the decoder's matrices, fp32: half of the bundle's.
WEIGHTS = 93e6

#: Rows that take a step together on a GPU (backends/ort_gpu/ort_cuda.py: lanes of 32).
ROWS = 32

#: Kernels of a step, of each layer and in all, and seconds until one begins inside a recorded
#: graph.
KERNELS, LAUNCH = 14 * LAYERS, 2.0e-6

HOURS = 1000.0

PRICES = "0.10,0.45,3.50"


@dataclass(frozen=True)
class Machine:
    """Something to rent.

    Attributes:
        name: Of the row.
        cores: Of the host.
        bandwidth: Bytes a second of the GPU's memory, by its data sheet; 0 without a GPU.
    """

    name: str
    cores: int
    bandwidth: float = 0.0


MACHINES = (
    Machine("2 cores of a Xeon with AMX", 2),
    Machine("RTX 4090, 8 cores", 8, 1.008e12),
    Machine("H200, 16 cores", 16, 4.8e12),
)


@dataclass(frozen=True)
class Row:
    """What a model comes to on a machine.

    Attributes:
        machine: Its name.
        model: Its name.
        speed: Seconds of audio in a second.
        limit: What limits it.
        known: ``measured`` or ``computed``.
        hours: Of the machine for a thousand hours of audio.
        cost: At the price.
    """

    machine: str
    model: str
    speed: float
    limit: str
    known: str
    hours: float
    cost: float

    def line(self) -> str:
        """A row of a table in Markdown."""
        head = f"| {self.machine} | {self.model} | {self.speed:,.0f}x | {self.known} "
        return head + f"| {self.limit} | {self.hours:,.1f} | {self.cost:,.2f} |"


def limits(machine: Machine, tokens: float) -> dict[str, float]:
    """Speeds that a GPU cannot exceed, by what limits it; ``tokens`` are those of a second."""
    cross = LAYERS * 2 * FRAMES * WIDTH * NUMBER
    token = cross + WEIGHTS / ROWS
    return {
        "reading": machine.cores * READING,
        "memory": machine.bandwidth / (tokens * token),
        "launches": ROWS / (KERNELS * LAUNCH) / tokens,
    }


def figures() -> dict[str, Any]:
    """What README's figures are made of."""
    return json.loads(README.read_text("utf-8"))["parts"]["readme"]["benchmarks"]


def rows(prices: list[float]) -> list[Row]:
    """The table, with prices of an hour."""
    benchmarks = figures()
    song, small = benchmarks["song"]["figures"], benchmarks["default_model"]["figures"]
    tokens = song["tokens"] / song["audio"]
    measured = {"default": small["audio"] / small["default"]["song"],
                "Magenta's": song["audio"] / song["ours"]}  # fmt: skip
    found = []
    for machine, price in zip(MACHINES, prices, strict=True):
        if machine.bandwidth:  # the default model's limit is reading, too
            known, limited = "computed", limits(machine, tokens)
            limit = min(limited, key=lambda one: limited[one])
            speeds = {"Magenta's": limited[limit]}
        else:
            known, limit, speeds = "measured", "arithmetic", measured
        for model, speed in speeds.items():
            hours = HOURS / speed
            found.append(Row(machine.name, model, speed, limit, known, hours, hours * price))
    return found


HEAD = """| machine | model | speed | known | limit | machine hours | cost |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Prints the table, and the limits of each GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prices", default=PRICES, help="an hour of each machine")
    prices = [float(price) for price in parser.parse_args().prices.split(",")]
    print(HEAD)
    for row in rows(prices):
        print(row.line())
    song = figures()["song"]["figures"]
    for machine in MACHINES[1:]:
        found = limits(machine, song["tokens"] / song["audio"])
        told = ", ".join(f"{name} {speed:,.0f}x" for name, speed in found.items())
        print(f"\n{machine.name}: {told}")


if __name__ == "__main__":
    main()
