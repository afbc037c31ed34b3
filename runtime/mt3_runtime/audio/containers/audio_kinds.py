"""What a file is, by its first bytes: a container libsndfile does not read, or no audio at all.

Contract: :func:`container_kind` names a format that FFmpeg reads and libsndfile does not, so that
the reader of containers is given files of these formats and no others; :func:`describe` says of any
other file what it is, for the message that refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mt3_runtime.audio.containers.byte_source import Bytes, ByteView, Part

_HEAD = 4096
_MOOV_MOST = 1 << 26
"""Largest index of an MP4 that is looked into for the name of its codec."""


class Container(NamedTuple):
    """A format that FFmpeg reads.

    Attributes:
        name: What people call it.
        demuxer: FFmpeg's name for what reads it.
        magic: Pattern of its first bytes.
    """

    name: str
    demuxer: str
    magic: re.Pattern[bytes]


def _container(name: str, demuxer: str, magic: bytes) -> Container:
    return Container(name, demuxer, re.compile(magic, re.DOTALL))


CONTAINERS = (
    _container("MP4", "mov", rb".{4}ftyp"),
    _container("QuickTime", "mov", rb".{4}(moov|mdat|wide|free|skip|pnot).{4}"),
    _container("WebM", "matroska", rb"\x1a\x45\xdf\xa3.{0,60}webm"),
    _container("Matroska", "matroska", rb"\x1a\x45\xdf\xa3"),
    _container(
        "WMA or WMV", "asf", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"
    ),
    _container("AVI", "avi", rb"RIFF.{4}AVI "),
    _container("Flash video", "flv", rb"FLV\x01"),
    _container("AMR", "amr", rb"#!AMR"),
    _container("DSF", "dsf", rb"DSD .{8}"),
    _container("DSDIFF", "iff", rb"FRM8.{8}DSD "),
    _container("Monkey's Audio", "ape", rb"MAC "),
    _container("WavPack", "wv", rb"wvpk"),
    _container("True Audio", "tta", rb"TTA1"),
    _container("TAK", "tak", rb"tBaK"),
    _container("Musepack", "mpc8", rb"MPCK"),
    _container("Musepack", "mpc", rb"MP\+[\x07\x17]"),
    _container("OptimFROG", "", rb"OFR "),
    _container("RealMedia", "rm", rb"\.RMF|\.ra\xfd"),
    _container("AC-3", "ac3", rb"\x0b\x77"),
    _container("DTS", "dts", rb"\x7f\xfe\x80\x01"),
    _container("MPEG programme stream", "mpeg", rb"\x00\x00\x01\xba"),
    _container("MPEG transport stream", "mpegts", rb"G(?=.{187}G.{187}G)"),
    _container("ADIF AAC", "aac", rb"ADIF"),
)
ADTS = _container("AAC", "aac", rb"\xff[\xf0\xf1\xf8\xf9]")

#: FFmpeg's readers of formats of which libsndfile knows only some codecs.
SHARED = {
    "WAV": "wav", "RIFX": "wav", "RF64": "wav", "W64": "w64", "AIFF": "aiff", "CAF": "caf",
    "AU": "au", "Ogg Speex": "ogg", "Ogg": "ogg", "FLAC": "flac", "MPEG audio": "mp3",
}  # fmt: skip

_OTHERS = (
    (rb"MThd", "a MIDI file, which is notes already"),
    (rb"\s*(<!doctype html|<html)", "a web page (HTML)"),
    (rb"\s*<\?xml", "an XML text"),
    (rb"%PDF", "a PDF document"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"7z\xbc\xaf", "a 7z archive"),
    (rb"Rar!", "a RAR archive"),
    (rb"\x89PNG", "a PNG picture"),
    (rb"\xff\xd8\xff", "a JPEG picture"),
    (rb"GIF8", "a GIF picture"),
    (rb"#EXTM3U", "a playlist (M3U)"),
    (rb"\[playlist\]", "a playlist (PLS)"),
    (rb"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
    (rb"\{|\[\s*[\[{\"]", "a JSON text"),
)

_FILE = re.compile(rb"RIF[FX]|RF64|BW64|FORM|fLaC|OggS|caff|riff|\.snd|.{4}ftyp", re.DOTALL)

_MP4_CODECS = {
    b"mp4a": "AAC", b"alac": "ALAC", b"Opus": "Opus", b"ac-3": "AC-3", b"ec-3": "E-AC-3",
    b".mp3": "MP3", b"samr": "AMR", b"sawb": "AMR", b"fLaC": "FLAC", b"lpcm": "PCM",
    b"sowt": "PCM", b"twos": "PCM", b"in24": "PCM", b"fl32": "PCM", b"ipcm": "PCM",
}  # fmt: skip


_MATROSKA_CODECS = (
    (b"A_OPUS", "Opus"), (b"A_VORBIS", "Vorbis"), (b"A_AAC", "AAC"), (b"A_FLAC", "FLAC"),
    (b"A_MPEG/L3", "MP3"), (b"A_AC3", "AC-3"), (b"A_EAC3", "E-AC-3"), (b"A_PCM", "PCM"),
)  # fmt: skip


def begins_file(source: Bytes, at: int) -> bool:
    """Whether a file of another kind begins at ``at``, in which nothing is to be looked for."""
    return bool(_FILE.match(source.at(at, 8)))


def container_kind(source: Bytes, at: int) -> Container | None:
    """The container that begins at ``at``, None if it is none of these."""
    head = source.at(at, _HEAD)
    if ADTS.magic.match(head) and _is_adts(source, at):
        return ADTS
    return next((container for container in CONTAINERS if container.magic.match(head)), None)


def container_part(source: Bytes, start: int, kind: Container) -> Part:
    """Take the container that begins at ``start``; an MP4 up to another one behind it."""
    end = _mp4_end(source, start) if kind.demuxer == "mov" else source.size
    view = ByteView(source, [range(start, end)])
    return Part(start, end, view, container_name(view, kind), demuxer=kind.demuxer, foreign=True)


def container_name(source: Bytes, kind: Container) -> str:
    """Name of a container and, where it is easily found, of the codec in it: "MP4 with AAC"."""
    codecs: list[str] = []
    if kind.demuxer == "mov":
        codecs = [_MP4_CODECS[code] for code in _mp4_codes(source) if code in _MP4_CODECS]
    elif kind.demuxer == "matroska":
        codecs = [name for code, name in _MATROSKA_CODECS if code in source.at(0, _HEAD)]
    return " with ".join([kind.name, *dict.fromkeys(codecs[:1])])


def describe(source: Bytes) -> str:
    """What a file is that is no audio, as the object of "this is"; empty if that is not known."""
    head = source.at(0, _HEAD)
    for magic, text in _OTHERS:
        if re.match(magic, head, re.IGNORECASE):
            return text
    if not head.strip(b"\0"):
        return "zeros"
    return "text" if _is_text(head) else ""


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", "strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        return False
    return len(text) > len(head) // 4 and all(sign.isprintable() or sign.isspace() for sign in text)


def _is_adts(source: Bytes, at: int) -> bool:
    """Whether two frames of AAC follow one another."""
    head = source.at(at, 7)
    if len(head) < 7:
        return False
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    following = source.at(at + length, 2)
    return length > 7 and (not following or bool(ADTS.magic.match(following)))


def _mp4_boxes(source: Bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, first byte and end of the boxes one behind the other."""
    while len(head := source.at(at, 16)) >= 8:
        size = int.from_bytes(head[:4])
        if size == 1:
            size = int.from_bytes(head[8:16])
        end = source.size if size == 0 else at + size
        if end < at + 8:
            return
        yield head[4:8], at, end
        at = end


def _mp4_end(source: Bytes, start: int) -> int:
    """Where another MP4 follows, else the end."""
    index = False
    for name, at, _ in _mp4_boxes(source, start):
        if name == b"ftyp" and index:
            return at
        index = index or name in (b"moov", b"moof")
    return source.size


def _mp4_codes(source: Bytes) -> list[bytes]:
    """The codes of the codecs of all tracks."""
    for name, at, end in _mp4_boxes(source, 0):
        if name == b"moov":
            index = source.at(at, min(end - at, _MOOV_MOST))
            return [found[1] for found in re.finditer(rb"stsd.{12}(.{4})", index, re.DOTALL)]
    return []
