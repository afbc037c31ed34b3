"""`mt3 triton`: writes a model repository for NVIDIA Triton; its folders go to stdout."""

from __future__ import annotations

import argparse
from pathlib import Path

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError


class TritonCommand:
    """Writes a model repository."""

    name = "triton"
    help = "write a model repository for NVIDIA Triton"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's own arguments."""
        add = parser.add_argument
        add("model", metavar="MODEL", help="a bundle, or the name of an installed one")
        add("-o", "--output", required=True, metavar="OUT", help="folder that is made")
        add(
            "--device",
            choices=("cpu", "cuda", "tensorrt", "rtx"),
            default="cpu",
            help="what the models run on; which GPU, Triton says (default: cpu)",
        )
        add("--threads", type=int, metavar="N", help="CPU threads of an instance (default: all)")
        add(
            "--instances",
            type=int,
            default=1,
            metavar="N",
            help="processes of each model, on GPUs of each GPU (default: 1)",
        )
        add(
            "--readers",
            type=int,
            default=1,
            metavar="N",
            help="processes of an instance that decode uploads, under limits; 0: the instance does "
            "it itself, without limits (default: 1)",
        )
        add(
            "--queue",
            type=int,
            default=256,
            metavar="N",
            help="requests of a model that may wait (default: 256)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Writes it, and says how to start it."""
        from mt3_runtime.models.installed import resolve_model  # noqa: PLC0415  NumPy takes 0.1 s
        from mt3_server.triton_models.repository import Settings, write_repository  # noqa: PLC0415

        if not args.output:
            raise OptionError("The argument of -o is empty; name a folder.")
        settings = Settings(args.device, args.threads, args.instances, args.readers, args.queue)
        for folder in write_repository(resolve_model(args.model), Path(args.output), settings):
            print(folder)
        talk(f"start it with: tritonserver --model-repository={args.output}")
        return ExitCode.OK
