"""A model that answers from a table, to test what a command does with outcomes of all kinds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

from mt3_runtime.errors import BundleError, EngineError
from mt3_runtime.transcription import Handle, Progress


class AnsweringModel:
    """Stands for a loaded model; subclasses say what comes of a source."""

    device = "cpu, 1 thread"
    info = SimpleNamespace(decoding=SimpleNamespace(memory_tokens=0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def answer(self, source: Any, name: str, options: dict[str, object]) -> Any:
        """A result or an exception; raises `BundleError` if the device fails."""
        raise NotImplementedError

    def length(self, name: str) -> float:
        """Seconds of a source."""
        return 2.0

    def transcribe_many(self, sources: tuple[()], **_options: object) -> None:
        """Only checks options."""
        assert sources == ()

    def engine(self, **_limits: object) -> AnsweringEngine:
        """An engine that answers at once."""
        return AnsweringEngine(self)


class AnsweringEngine:
    """Takes recordings in until its device fails."""

    def __init__(self, model: AnsweringModel) -> None:
        self._model, self._error = model, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(
        self, source: Any, *, priority: str, deadline: float | None, **options: object
    ) -> Handle:
        """A recording that is done."""
        assert priority == "batch"
        if self._error:
            raise self._error
        name = getattr(source, "name", str(source))
        length = self._model.length(name)
        handle = Handle(lambda: length, deadline, stop=lambda _: None)
        handle.progress = Progress(1.0, length, 1)
        try:
            outcome = self._model.answer(source, name, options)
        except BundleError as error:
            outcome = self._error = EngineError(f"The engine has stopped: {error}")
            outcome.__cause__ = error
        handle.finish(outcome)
        return handle
