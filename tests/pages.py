"""Documentation pages as tests see them: text, code blocks, tables, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")

SHELLS = ("sh", "bash", "console")
"""Languages of code blocks that hold commands."""

PROGRAMS = re.compile(r"(mt3|python|pip|docker|pytest|scripts/\w+) ")
"""How blocks of plain text begin that hold commands all the same."""


@dataclass(frozen=True)
class Command:
    """One command of a shell block.

    Attributes:
        words: Program and arguments.
        variables: Assigned in front of it.
        output: File that takes its stdout; empty for none.
        reader: Words of the program behind a pipe; empty for none.
    """

    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    output: str = ""
    reader: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(text: str, *languages: str) -> list[str]:
    """Bodies of the fenced blocks in some languages."""
    return [body for name, body in FENCE.findall(text) if name in languages]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The ids that headings get."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows, heads included."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def first_cells(text: str) -> list[str]:
    """The names in backquotes of every table row's first cell."""
    return [name for row in rows(text) for name in CODE.findall(row[0])]


def shell_blocks(text: str) -> list[str]:
    """Bodies of all blocks that hold commands."""
    return [
        body
        for name, body in FENCE.findall(text)
        if name in SHELLS or (name == "text" and PROGRAMS.match(body))
    ]


def commands(body: str) -> Iterator[Command]:
    """Every command of a shell block, in order; understands `&&`, `;`, one `|`, one `>`."""
    for line in body.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in ("&&", ";"):
                if words:
                    yield _command(words)
                words = []
            else:
                words.append(word)


def _command(words: list[str]) -> Command:
    words, reader = _split(words, "|")
    words, output = _split(words, ">")
    count = next(n for n, word in enumerate(words) if not re.match(r"[A-Za-z_]\w*=", word))
    variables = tuple((name, value) for name, _, value in (w.partition("=") for w in words[:count]))
    assert len(output) < 2
    return Command(tuple(words[count:]), variables, "".join(output), tuple(reader))


def _split(words: list[str], sign: str) -> tuple[list[str], list[str]]:
    if sign not in words:
        return words, []
    at = words.index(sign)
    return words[:at], words[at + 1 :]
