"""What is heard of the compiler, what is passed on, and what is dropped."""

from __future__ import annotations

import logging

import pytest

from mt3_engines.building.compiler_log import POLYGRAPHY, heard


@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG, logging.CRITICAL])
def test_the_first_error_is_the_reason(caplog, level):
    POLYGRAPHY.setLevel(level)
    try:
        with caplog.at_level(logging.WARNING, "mt3_engines"), heard() as said:
            POLYGRAPHY.error("[E] Myelin: no\n  such product")
            POLYGRAPHY.critical("[!] Invalid Engine")
        assert said.reason(ValueError("x")) == "Myelin: no such product"
        assert POLYGRAPHY.level == level
        assert not caplog.records
    finally:
        POLYGRAPHY.setLevel(logging.NOTSET)


def test_without_an_error_what_was_raised_is_the_reason():
    with heard() as said:
        pass
    assert said.reason(ValueError("what was raised")) == "what was raised"


@pytest.mark.parametrize(
    ("text", "passed_on"),
    [
        ("[W] ModelImporter.cpp:1071: Make sure input token_ids has Int64 binding.", False),
        ("[W] ModelImporter.cpp:1303: Make sure output top_ids has Int64 binding.", False),
        ("[W] Make sure input positions has Int64 binding.", True),  # ours has 32 bits
        ("[W] Weights were clipped", True),
    ],
)
def test_only_unexpected_warnings_are_passed_on(caplog, capsys, text, passed_on):
    with caplog.at_level(logging.WARNING, "mt3_engines"), heard():
        POLYGRAPHY.warning(text)
    assert [record.getMessage() for record in caplog.records] == [text] * passed_on
    assert capsys.readouterr().out == ""


def test_a_failure_ends_the_listening():
    before = list(POLYGRAPHY.handlers), POLYGRAPHY.propagate
    with pytest.raises(ValueError, match="x"), heard():
        raise ValueError("x")
    assert (list(POLYGRAPHY.handlers), POLYGRAPHY.propagate) == before
