"""Records what T5X's own beam loop returns on small tables, so the suite needs no JAX.

Contract: `t5x/decoding.py` is executed unmodified (one beam, alpha 0.6, EOS 1: what Magenta's
notebook runs) on tables that give the next-token logits of every (step, previous token). The tables
are stored as integers next to the returned sequences and scores; nothing of the upstream source is.
Every case is run in its group and alone, because the published loop stops a whole batch at once:
the recipe refuses to write goldens whose result depends on the company.

Reading a golden: case `i` belongs to group `group[i]`, has `vocabulary[i]` tokens and may emit
`length[i]` of them. With V = `vocabulary[i]`, previous token p (0 at step n = 0):
    logits = (step_table[i, n, :V] + token_table[i, p, :V]) / 65536     float32, exact
`sequence[i]` is zero-padded (token 0 never occurs in it), `score[i]` is float32, `kind[i]` indexes
`kinds` in the `recipe` JSON, `own_stop[i]` is the step at which the row alone would have stopped.

Run (environment: see tests/parity/oracle-requirements.txt):
    python t5x_goldens.py --t5x PATH --out t5x_beam.npz [--stress 400]
PATH is a checkout of github.com/google-research/t5x or a git directory holding COMMIT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

COMMIT = "cc342d419ec3e3e9c4bf1df33c82330cafdc1e16"
SCALE = 65536
EOS = 1
ALPHA = 0.6
KINDS = ("toy", "greedy", "continued", "eos_second", "unfinished", "delayed")
# (rows, vocabulary, length) of the groups that are stored; eight rows is the notebook's batch.
GROUPS = (
    (8, 8, 24), (8, 12, 64), (8, 10, 40), (8, 9, 32), (8, 12, 48),
    (5, 8, 24), (4, 12, 64), (3, 10, 40), (2, 9, 32), (2, 12, 24), (1, 8, 64),
)  # fmt: skip
# Every decision of a stored case is clearer than this, so that rounding cannot change a result.
MARGIN = 1e-3


@dataclass(frozen=True)
class Table:
    """Integer logits of one case: `step` [length, V] and `token` [V, V], in units of 1/SCALE."""

    step: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]

    @property
    def length(self) -> int:
        return int(self.step.shape[0])


@dataclass(frozen=True)
class Trace:
    """What the float64 mirror of the loop saw, with its smallest decision margin."""

    sequence: tuple[int, ...]
    score: float
    greedy: tuple[int, ...]
    stopped: int
    margin: float
    finished: bool
    eos_second: bool


def load_decoding(source: Path) -> types.ModuleType:
    """Execute t5x/decoding.py of a checkout or git directory, its one unused import stubbed."""
    checkout = source / "t5x" / "decoding.py"
    if checkout.is_file():
        text = checkout.read_text(encoding="utf-8")
    else:
        command = ["git", "-C", str(source), "show", f"{COMMIT}:t5x/decoding.py"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    package = types.ModuleType("t5x")
    package.binary_search = types.ModuleType("t5x.binary_search")  # type: ignore[attr-defined]
    module = types.ModuleType("t5x.decoding")
    sys.modules.update({"t5x": package, "t5x.decoding": module})
    exec(compile(text, "t5x/decoding.py", "exec"), module.__dict__)
    return module


def runner(decoding: types.ModuleType) -> Callable[[list[Table]], tuple[Any, Any]]:
    """Return run(tables of a group) -> (sequences int32 [B, length], scores float32 [B])."""
    import jax
    import jax.numpy as jnp

    def search(step: Any, token: Any) -> tuple[Any, Any]:
        rows = jnp.arange(step.shape[0])

        def tokens_to_logits(state: Any) -> tuple[Any, Any]:
            total = step[:, state.cur_index] + token[rows, state.cur_token[:, 0]]
            return total.astype(jnp.float32) / SCALE, state.cache

        start = jnp.zeros(step.shape[:2], jnp.int32)
        found, scores = decoding.beam_search(
            start, {"none": jnp.zeros((step.shape[0], 1))}, tokens_to_logits,
            eos_id=EOS, num_decodes=1, alpha=ALPHA,
        )  # fmt: skip
        return found[:, -1], scores[:, -1]

    compiled = jax.jit(search)

    def run(tables: list[Table]) -> tuple[Any, Any]:
        found, scores = compiled(
            np.stack([t.step for t in tables]), np.stack([t.token for t in tables])
        )
        return np.asarray(found), np.asarray(scores)

    return run


def mirror(table: Table) -> Trace:
    """Follow the loop of one row in float64 and note how close each decision was."""
    length = table.length

    def penalty(n: int) -> float:
        return float(((5.0 + n) / 6.0) ** ALPHA)

    live, greedy = [0], list[int]()
    best: tuple[int, ...] = ()
    total, score, margin, stopped, second = 0.0, -1.0e7, np.inf, length, False
    for n in range(length):
        if best:
            margin = min(margin, abs(score - total / penalty(length + 1)))
        if best and score > total / penalty(length + 1):
            stopped = n
            break
        logits = (table.step[n] + table.token[live[-1]]).astype(np.float64) / SCALE
        logs = logits - logits.max()
        logs = logs - np.log(np.exp(logs).sum()) + total
        order = np.argsort(-logs, kind="stable")
        margin = min(margin, *-np.diff(logs[order[:3]]))
        if EOS not in greedy:
            greedy.append(int(order[0]))
        if EOS in order[:2]:
            candidate = logs[EOS] / penalty(n + 1)
            margin = min(margin, abs(candidate - score))
            if candidate > score:
                best, score = (*live[1:], EOS), candidate
                second = int(order[1]) == EOS
        following = int(order[0] if order[0] != EOS else order[1])
        live.append(following)
        total = float(logs[following])
    sequence = best or tuple(live[1:])
    return Trace(
        sequence, score if best else total, tuple(greedy), stopped, margin, bool(best), second
    )


def toy() -> Table:
    """History-independent table on which greedy gives 3 3 3 EOS and the loop 3 3 3 5 6 6 6 EOS."""
    rows: list[dict[int, float]] = [{3: 0.30, 4: 0.25, 5: 0.20}] * 3
    rows += [{EOS: 0.40, 5: 0.35}, *[{6: 0.97}] * 3, {EOS: 0.97}]
    rows += [{6: 0.5, 7: 0.3}] * (24 - len(rows))
    chances = np.full((24, 8), 1e-4)
    for n, row in enumerate(rows):
        chances[n, list(row)] = list(row.values())
    return Table(np.round(np.log(chances) * SCALE).astype(np.int32), np.zeros((8, 8), np.int32))


def draw(generator: np.random.Generator, vocabulary: int, length: int) -> Table:
    """A random table: sharpness, and where EOS becomes likely, vary from case to case."""
    unit = SCALE // 64
    sharp = generator.choice([30, 90, 200, 350])
    step = generator.integers(-sharp, sharp + 1, (length, vocabulary))
    token = generator.integers(-sharp, sharp + 1, (vocabulary, vocabulary))
    end = int(generator.integers(2, length + length // 2))
    push = int(generator.choice([0, 100, 250, 500]))
    step[:, 0] -= 2000  # PAD stays out, so that zero means padding in a stored sequence
    step[:, EOS] += np.where(np.arange(length) < end, -push - 100, push - 50)
    return Table((step * unit).astype(np.int32), (token * unit).astype(np.int32))


def classify(trace: Trace, group_stop: int) -> str:
    if not trace.finished:
        return "unfinished"
    if trace.eos_second:
        return "eos_second"
    if trace.sequence != trace.greedy:
        return "continued"
    return "delayed" if trace.stopped < group_stop else "greedy"


def build_group(
    seed: int, rows: int, vocabulary: int, length: int
) -> tuple[list[Table], list[str]]:
    """Draw the rows of one group: clear margins, and as many kinds as possible."""
    generator = np.random.default_rng(seed)
    pool: list[tuple[Table, Trace]] = []
    while len(pool) < 400:
        table = draw(generator, vocabulary, length)
        trace = mirror(table)
        if trace.margin > MARGIN and len(trace.sequence) > 1:
            pool.append((table, trace))
    wanted = ("continued", "greedy", "eos_second", "unfinished") if rows > 1 else ("continued",)
    picked: list[tuple[Table, Trace]] = [(toy(), mirror(toy()))] if seed == 0 else []
    for turn in range(rows - len(picked)):
        kind = wanted[turn % len(wanted)]
        if kind == "unfinished" and seed % 2:
            kind = "greedy"  # every other group ends early, by the stop test and not by the limit
        match = [i for i, p in enumerate(pool) if classify(p[1], 0) == kind] or list(
            range(len(pool))
        )
        match.sort(key=lambda i: len(pool[i][1].sequence))
        picked.append(pool.pop(match[len(match) * (1 + turn % 3) // 4]))
    stop = max(trace.stopped for _, trace in picked)
    kinds = [
        "toy" if seed == 0 and i == 0 else classify(t, stop) for i, (_, t) in enumerate(picked)
    ]
    return [table for table, _ in picked], kinds


def record(run: Callable[[list[Table]], tuple[Any, Any]]) -> dict[str, Any]:
    """Run all stored groups; raise if a result depends on the group or differs from the mirror."""
    most_v, most_l = max(g[1] for g in GROUPS), max(g[2] for g in GROUPS)
    columns: dict[str, list[Any]] = {}
    for number, (rows, vocabulary, length) in enumerate(GROUPS):
        tables, kinds = build_group(number, rows, vocabulary, length)
        found, scores = run(tables)
        for row, table in enumerate(tables):
            alone, score = run([table])
            if not np.array_equal(alone[0], found[row]) or score[0] != scores[row]:
                raise SystemExit(f"group {number} row {row}: the result depends on the batch")
            trace = mirror(table)
            if tuple(found[row][found[row] != 0]) != tuple(t for t in trace.sequence if t):
                raise SystemExit(f"group {number} row {row}: float64 mirror disagrees")
            step = np.zeros((most_l, most_v), np.int32)
            token = np.zeros((most_v, most_v), np.int32)
            sequence = np.zeros(most_l, np.int32)
            step[:length, :vocabulary], token[:vocabulary, :vocabulary] = table.step, table.token
            sequence[:length] = found[row]
            entry = {
                "group": number, "vocabulary": vocabulary, "length": length,
                "kind": KINDS.index(kinds[row]), "own_stop": trace.stopped, "score": scores[row],
                "sequence": sequence, "step_table": step, "token_table": token,
                "greedy_differs": trace.sequence != trace.greedy,
            }  # fmt: skip
            for key, value in entry.items():
                columns.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in columns.items()}


def stress(run: Callable[[list[Table]], tuple[Any, Any]], groups: int) -> dict[str, int]:
    """Compare grouped with lone runs on random tables, bit for bit, without filtering by margin."""
    generator = np.random.default_rng(99)
    counts = {"groups": groups, "rows": 0, "different": 0, "kept_running_after_own_stop": 0}
    for _ in range(groups):
        tables = [draw(generator, 10, 40) for _ in range(8)]
        found, scores = run(tables)
        traces = [mirror(table) for table in tables]
        last = max(trace.stopped for trace in traces)
        for row, table in enumerate(tables):
            alone, score = run([table])
            counts["rows"] += 1
            counts["different"] += not (
                np.array_equal(alone[0], found[row]) and score[0] == scores[row]
            )
            counts["kept_running_after_own_stop"] += traces[row].stopped < last
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--t5x", type=Path, required=True, help="checkout or git directory of t5x")
    parser.add_argument("--out", type=Path, help="golden file to write")
    parser.add_argument(
        "--stress",
        type=int,
        default=0,
        metavar="GROUPS",
        help="only compare grouped with lone runs",
    )
    options = parser.parse_args()
    run = runner(load_decoding(options.t5x))
    if options.stress:
        print(json.dumps(stress(run, options.stress)))
    if options.out:
        import jax

        arrays = record(run)
        recipe = {
            "source": "github.com/google-research/t5x, t5x/decoding.py", "commit": COMMIT,
            "call": f"beam_search(zeros, num_decodes=1, alpha={ALPHA}, eos_id={EOS})",
            "scale": SCALE, "kinds": KINDS, "jax": jax.__version__, "numpy": np.__version__,
        }  # fmt: skip
        np.savez_compressed(options.out, recipe=np.array(json.dumps(recipe)), **arrays)
        names, counts = np.unique(np.array(KINDS)[arrays["kind"]], return_counts=True)
        print(
            json.dumps(
                {
                    "cases": len(arrays["kind"]),
                    **dict(zip(names.tolist(), counts.tolist(), strict=True)),
                }
            )
        )


if __name__ == "__main__":
    main()
