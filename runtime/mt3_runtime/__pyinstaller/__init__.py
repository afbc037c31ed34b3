"""Where PyInstaller finds what a frozen program needs of this package."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder of the hooks; the entry point ``hook-dirs`` of the group ``pyinstaller40``."""
    return [str(Path(__file__).parent)]
