"""`mt3 web`: the page that transcribes in a browser, as a static site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import talk
from mt3_runtime.errors import OptionError
from mt3_runtime.models.installed import resolve_model

if TYPE_CHECKING:
    import argparse


class WebCommand:
    """Builds the page; to serve what it writes, any web server will do."""

    name = "web"
    help = "build the page that transcribes in a browser"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's own arguments."""
        parser.add_argument("action", choices=("build",), help="build: write a static site")
        parser.add_argument(
            "-o", "--output", metavar="DIR", required=True, help="folder to make; it must be new"
        )
        parser.add_argument(
            "-m", "--model", metavar="MODEL", default="default", help="name or bundle (default)"
        )
        parser.add_argument(
            "--packages",
            metavar="DIR",
            help="a folder node_modules with onnxruntime-web (default: fetched with npm)",
        )

        parser.add_argument(
            "--webgpu",
            action="store_true",
            help="let the page offer to compute on graphics processors (27 MB more)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Does the work; the folder's path goes to stdout."""
        from mt3_export.static_site import build_site  # noqa: PLC0415  onnx takes 0.3 s to import

        if not args.output:
            raise OptionError("-o needs the name of a folder.")
        out = Path(args.output)
        packages = None if args.packages is None else Path(args.packages)
        bundle = Bundle(resolve_model(args.model))
        files = build_site(bundle, out, packages=packages, webgpu=args.webgpu)
        size = sum((out / file).stat().st_size for file in files)
        talk(f"{len(files)} files, {size / 2**20:.1f} MiB; look at it with:")
        talk(f"python -m http.server --bind 127.0.0.1 --directory {out}")
        print(out)
        return 0
