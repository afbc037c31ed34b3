"""`mt3 serve`: transcription over HTTP and WebSocket.

The models are loaded, and a tone went through each of them, before the port is opened.  Logs are
one JSON object a line on stderr.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.cli import ExitCode
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from mt3_runtime.model import Model
    from mt3_server.settings import Settings

_MOST = 1e9


class ServeCommand:
    """Serves transcription to other programs."""

    name = "serve"
    help = "serve transcription over HTTP and WebSocket"
    default_drain = 30.0

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds address, models, access and limits."""
        add = parser.add_argument
        add("-m", "--model", action="append", metavar="[NAME=]MODEL", help="model to serve, and "
            "its name for clients; several if given again, the first is the default")  # fmt: skip
        add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
        add("--port", type=_whole(0, 65535), default=8765, help="default: 8765; 0: any free one")
        add("--device", default="auto", help="as for `mt3 transcribe`")
        add("--threads", type=_whole(1, 1024), metavar="N", help="CPU threads (default: all cores)")
        self._add_access(parser)
        self._add_limits(parser)
        add("--spool", metavar="FOLDER", help="for uploads and jobs (default: in the cache folder)")
        add("--log-names", action="store_true", help="let logs hold the names of uploads")

    def _add_access(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("access").add_argument
        add("--token-file", metavar="FILE", help="tokens that clients must show, one a line; "
            "needed where others can reach the address")  # fmt: skip
        add("--no-auth", action="store_true", help="ask for no token, whoever can reach it")
        add("--allow-host", action="append", default=[], metavar="NAME", help="name under which "
            "it may be asked for, beside addresses, localhost and this machine's name")  # fmt: skip
        add("--allow-origin", action="append", default=[], metavar="ORIGIN", help="pages of other "
            "servers that may use it, as https://example.org (default: none)")  # fmt: skip

    def _add_limits(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("limits").add_argument
        add("--readers", type=_whole(1, 256), default=1, metavar="N", help="processes that decode "
            "uploads (default: 1)")  # fmt: skip
        add("--max-upload", type=_number, default=200.0, metavar="MIB", help="default: 200")
        add("--max-duration", type=_number, default=3600.0, metavar="SECONDS", help="of a "
            "recording (default: 3600)")  # fmt: skip
        add("--max-spool", type=_number, default=4096.0, metavar="MIB", help="default: 4096")
        add("--max-live", type=_whole(0, 1024), default=8, metavar="N", help="live inputs at once "
            "(default: 8)")  # fmt: skip
        add(
            "--max-connections",
            type=_whole(1, 65536),
            default=512,
            metavar="N",
            help="default: 512",
        )
        add("--rate", type=_number, default=1200.0, metavar="N", help="requests a minute of one "
            "client (default: 1200)")  # fmt: skip
        add("--deadline", type=_number, default=3600.0, metavar="SECONDS", help="for a request "
            "(default: 3600)")  # fmt: skip
        add("--drain", type=_number, default=self.default_drain, metavar="SECONDS",
            help="for what is under way when it ends (default: 30)")  # fmt: skip
        add("--keep", type=_number, default=24.0, metavar="HOURS", help="for results of jobs "
            "(default: 24)")  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Loads the models, opens the port, serves until it is ended."""
        from mt3_server.observing.json_logs import log, to_stream  # noqa: PLC0415
        from mt3_server.service import Service  # noqa: PLC0415  needs the extra
        from mt3_server.service_app import service_app  # noqa: PLC0415
        from mt3_server.uvicorn_server import (  # noqa: PLC0415
            open_socket,
            raise_file_limit,
            server_of,
        )

        settings = settings_of(args)
        warnings.simplefilter("ignore")  # results have what they say, and lines are JSON
        raise_file_limit()
        with ExitStack() as stack:
            models = _load(args, stack)
            to_stream()
            if settings.open_to_all and not settings.tokens:
                log("no_auth", host=settings.host, note="everybody who reaches it may use it")
            service = Service(settings, models)
            stack.callback(service.close)
            listening = stack.enter_context(open_socket(settings.host, settings.port))
            server = server_of(service_app(service), service, listening)
            server.run(sockets=[listening])
            log("ended")
        return ExitCode.OK


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the arguments ask for.

    Raises:
        OptionError: They contradict each other.
    """
    from mt3_runtime.models.cache import cache_dir  # noqa: PLC0415
    from mt3_runtime.reading.reader_limits import MIB  # noqa: PLC0415
    from mt3_server.settings import Settings, read_tokens  # noqa: PLC0415

    if args.token_file and args.no_auth:
        raise OptionError("--token-file and --no-auth contradict each other; leave one out.")
    return Settings(
        spool=Path(args.spool) if args.spool else cache_dir() / "service",
        host=args.host,
        port=args.port,
        tokens=read_tokens(Path(args.token_file)) if args.token_file else frozenset(),
        open_to_all=args.no_auth,
        hosts=frozenset(args.allow_host),
        origins=frozenset(origin.lower().rstrip("/") for origin in args.allow_origin),
        readers=args.readers,
        body_bytes=max(1, round(args.max_upload * MIB)),
        audio_seconds=args.max_duration,
        spool_bytes=max(1, round(args.max_spool * MIB)),
        connections=args.max_connections,
        rate=args.rate,
        burst=max(1, round(args.rate / 3)),
        max_live=args.max_live,
        deadline=args.deadline,
        drain=args.drain,
        keep=args.keep * 3600.0,
        log_names=args.log_names,
    )


def _load(args: argparse.Namespace, stack: ExitStack) -> dict[str, Model]:
    """Loads the models, by the names that clients know."""
    from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --help

    models: dict[str, Model] = {}
    for wanted in args.model or [None]:
        name, given, path = (wanted or "").partition("=")
        model = load_model((path if given else wanted), device=args.device, threads=args.threads)
        stack.callback(model.close)
        known = name if given else model.info.name
        if known in models or not known:
            raise OptionError(f"Two models are called {known!r}; give them names: NAME=MODEL.")
        models[known] = model
    return models


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return parse


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
