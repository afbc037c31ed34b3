"""`mt3 doctor`: prints what works on this machine, and problems with their remedy."""

from __future__ import annotations

import argparse

from mt3_runtime.cli import ExitCode
from mt3_runtime.diagnostics.doctor import Level, examine, works


class DoctorCommand:
    """Checks this installation; ends with `ExitCode.OK` if the asked device works."""

    name = "doctor"
    help = "check this installation and say how to repair it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Which device decides about the exit code."""
        parser.add_argument(
            "--device",
            choices=("cpu", "cuda", "tensorrt", "rtx"),
            default="cpu",
            help="end with 0 if this device works, else with 3 (default: cpu)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Prints the report."""
        findings = examine(args.device)
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{finding.level:<8} {finding.subject:<{width}}  {finding.detail}")
            if finding.remedy:
                print(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
        fit = works(findings, args.device)
        problems = sum(finding.level is Level.PROBLEM for finding in findings)
        state = "works" if fit else "does not work"
        print(f"Transcription on device {args.device} {state}; problems found: {problems}.")
        return ExitCode.OK if fit else ExitCode.UNUSABLE
