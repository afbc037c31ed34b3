"""Progress bars for a person watching a terminal.

Contract: draws on stderr only, only if stderr is a terminal, and only if `rich` is installed; in
every other case the same object does nothing.  Nothing depends on it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self


class Meter:
    """One bar for one piece of work; a context manager.

    Args:
        label: What is being done.
        unit: Unit of the figures, such as ``s`` or ``MiB``.
        quiet: Draw nothing.
    """

    def __init__(self, label: str, *, unit: str, quiet: bool = False) -> None:
        self._label = label
        self._unit = unit
        self._wanted = not quiet and sys.stderr.isatty()
        self._stack = ExitStack()
        self._update: Callable[[float, float | None, str], None] = _ignore

    def __enter__(self) -> Self:
        if self._wanted:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def update(self, done: float, total: float | None, note: str = "") -> None:
        """Shows ``done`` of ``total`` (None: unknown) and a short note."""
        self._update(done, total, note)

    def _start(self) -> None:
        try:
            console = importlib.import_module("rich.console")
            rich = importlib.import_module("rich.progress")
        except ModuleNotFoundError:  # a bar is a comfort: without rich the work goes on
            return
        bar = self._stack.enter_context(
            rich.Progress(
                rich.TextColumn("{task.description}", markup=False),
                rich.BarColumn(),
                rich.TextColumn("{task.fields[figures]}", markup=False),
                rich.TimeRemainingColumn(),
                console=console.Console(stderr=True),
                transient=True,
            )
        )
        task = bar.add_task(self._label, total=None, figures="")

        def update(done: float, total: float | None, note: str) -> None:
            whole = f"/{total:.1f}" if total else ""
            figures = f"{done:.1f}{whole} {self._unit} {note}".rstrip()
            bar.update(task, completed=done, total=total or None, figures=figures)

        self._update = update


def _ignore(_done: float, _total: float | None, _note: str) -> None:
    """Stands in where nothing is drawn."""
