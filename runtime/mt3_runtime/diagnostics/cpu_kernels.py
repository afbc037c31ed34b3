"""Which matrix kernels of ONNX Runtime a CPU gets, and whether it can run any.

ONNX Runtime chooses by the instructions a CPU has, without a word, and between the slowest and the
fastest lies a factor of ten: a product of 8-bit integers takes a tenth of the time of one of floats
on AMX, and a third to a half on VNNI.  So whatever measures or diagnoses says which it is.  The
order of the tables is that of ONNX Runtime's own choice (``MLAS_PLATFORM`` of version 1.31).

x86 processors without AVX2 (from before 2013, or of a virtual machine that hides it) are refused by
name: they are tested by nobody any more, and a kernel they lack ends the process without an error.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import NamedTuple

from mt3_runtime.errors import DeviceError

#: Where Linux tells what a CPU has.  Other systems are not asked.
CPUINFO = Path("/proc/cpuinfo")

#: Kernels for products of fp32, and the instructions each needs, best first.
FLOATS = (
    ("AVX-512", {"avx512f"}),
    ("AVX2", {"avx2", "fma"}),
    ("AVX", {"avx"}),
    ("SSE2", {"sse2"}),
    ("NEON", {"asimd"}),
)

#: The same for products of 8-bit integers.
INTEGERS = (
    ("AMX", {"amx_tile", "amx_int8"}),
    ("AVX-512 VNNI", {"avx512_vnni", "avx512bw", "avx512vl"}),
    ("AVX-VNNI", {"avx_vnni"}),
    ("AVX-512 without VNNI", {"avx512bw", "avx512vl"}),
    ("AVX2 without VNNI", {"avx2"}),
    ("SSE without VNNI", {"sse2"}),
    ("NEON i8mm", {"i8mm"}),
    ("NEON dotprod", {"asimddp"}),
    ("NEON", {"asimd"}),
)

#: Instructions for products that ONNX Runtime's CPU provider leaves alone; other providers do not.
UNUSED = ("amx_bf16", "avx512_bf16", "avx512_fp16")

X86 = ("x86_64", "amd64", "i386", "i686")


class Cpu(NamedTuple):
    """A processor.

    Attributes:
        name: As it calls itself.
        flags: Its instructions, as Linux names them; empty where the system does not tell.
    """

    name: str
    flags: frozenset[str]


def cpu() -> Cpu:
    """The processor this runs on."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    rows = [row.partition(":") for row in text.splitlines()]
    known = {key.strip(): value.strip() for key, _, value in reversed(rows)}  # of the first core
    flags = known.get("flags") or known.get("Features") or ""
    name = known.get("model name") or platform.processor() or platform.machine()
    return Cpu(name, frozenset(flags.split()))


def kernels(flags: frozenset[str]) -> str:
    """The kernels that a CPU with these instructions gets, in words; empty where none are known."""
    if not flags:
        return ""
    floats, integers = (
        next((name for name, needs in table if needs <= flags), "none")
        for table in (FLOATS, INTEGERS)
    )
    return f"fp32 {floats}, int8 {integers}"


def check_cpu() -> None:
    """Refuses an x86 processor without AVX2.

    Raises:
        DeviceError: It is one.
    """
    found = cpu()
    if found.flags and platform.machine().lower() in X86 and "avx2" not in found.flags:
        raise DeviceError(
            f"The CPU ({found.name}) lacks AVX2, which ONNX Runtime's kernels are built for; any "
            "x86 processor since 2013 has it. In a virtual machine, let it see the host's CPU "
            "(QEMU: -cpu host)."
        )
