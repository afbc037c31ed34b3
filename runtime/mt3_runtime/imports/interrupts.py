"""Ctrl-C, SIGTERM and SIGHUP during imports: held back until the modules are complete.

C extensions do not survive an exception in the middle of their import: NumPy reports another error
in its place, and ONNX Runtime "initialization failed", or it aborts the process as Python ends.
"""

import signal
import threading

TYPE_CHECKING = False  # what this imports comes before Ctrl-C is one line
if TYPE_CHECKING:
    from types import FrameType

ENDING = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""Signals that end a program: asked to by another one, or its terminal was closed."""


class Held:
    """Inside, these signals wait; behind, their handlers are called as if they came just then.

    Handlers that are not Python's, and threads that may have none, are left as they are.
    """

    def __enter__(self) -> None:
        """Takes the place of the handlers."""
        self._arrived: list[int] = []
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, *ENDING):
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        """Gives their place back to the handlers, and hands them what arrived."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for arrived in self._arrived:
            signal.raise_signal(arrived)

    def _note(self, number: int, _frame: "FrameType | None") -> None:
        if number not in self._arrived:
            self._arrived.append(number)
