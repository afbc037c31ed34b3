"""The entry of the command `mt3`, and of ``python -m mt3_runtime``.

It imports nothing before it can answer Ctrl-C: what `mt3_runtime.cli` imports takes a tenth of a
second, and an interrupt in that time is one line and exit code 130, as it is later on.
"""

import sys


def main() -> int:
    """Runs `mt3` with the process's arguments, which ends thereafter; returns its exit code."""
    try:
        if getattr(sys, "frozen", False):  # there, our own processes begin here, too
            import multiprocessing  # noqa: PLC0415  see above

            multiprocessing.freeze_support()
        from mt3_runtime.imports.interrupts import Held  # noqa: PLC0415  see above

        with Held():
            from mt3_runtime.cli import main as run  # noqa: PLC0415

        code = run()
        import signal  # noqa: PLC0415  see above

        # While Python ends it would print a traceback; the system says no word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # before, or once more while the first one was being answered
        sys.stderr.write("mt3: interrupted\n")
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
