"""Exceptions of this project, one base class and its leaves.

One base class, so that a program that embeds the runtime can write one ``except``; each leaf also
inherits the builtin a Python programmer would expect.  A message says what happened, what was
expected and what to do next; the command line prints it as it is, without a traceback.
"""

from __future__ import annotations


class MT3Error(Exception):
    """Base of all errors raised on purpose by the four packages of this project."""


class OptionError(MT3Error, ValueError):
    """An argument is outside its range, or two arguments exclude each other."""


class AudioError(MT3Error, ValueError):
    """Audio cannot be decoded, or an array is not audio (shape, dtype, NaN, sample rate)."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """An audio path does not exist, or is not a file."""


class AudioLimitError(AudioError):
    """Audio has more bytes or seconds than is read here."""


class AudioFormatError(AudioError):
    """Audio is in a format that is not accepted here."""


class OutputError(MT3Error, OSError):
    """A result cannot be written (folder in the way, no permission, full disk, name clash)."""


class BundleError(MT3Error, ValueError):
    """A bundle is damaged, mixed from several exports, too new, or lacks what was asked for."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """No bundle at this path, and no installed model of this name."""


class CheckpointError(MT3Error, ValueError):
    """A checkpoint file is unreadable, hostile, incomplete or of an unknown family."""


class DeviceError(MT3Error, RuntimeError):
    """The requested device, provider or graph profile cannot be used on this machine."""


class EngineError(MT3Error, RuntimeError):
    """An engine was closed or its device failed; what was submitted to it is not done."""


class EngineBusyError(EngineError):
    """An engine has as much to do as it may; try again later."""


class DeadlineError(MT3Error, TimeoutError):
    """A recording was not done in the time it was given."""


class DownloadError(MT3Error, OSError):
    """A download failed, or what arrived is not what the catalogue promises."""


class MissingDependencyError(MT3Error, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class AudioWarning(UserWarning):
    """Audio was read in part, or its length or level makes notes doubtful; the message says so."""


class MidiWarning(UserWarning):
    """A MIDI file that is written may not play as meant, or one that is read may lack notes."""


class ResultWarning(UserWarning):
    """A result has no notes, or an option left none of a kind; the message says why."""
