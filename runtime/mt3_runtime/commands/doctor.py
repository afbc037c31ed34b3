"""`mt3 doctor`: print the findings of `mt3_runtime.doctor`, problems with their remedy."""

from __future__ import annotations

import argparse

from mt3_runtime.cli import ExitCode
from mt3_runtime.doctor import Level, cpu_works, examine


class DoctorCommand:
    """Checks this installation; ends with `ExitCode.OK` if the CPU path works."""

    name = "doctor"
    help = "check this installation and say how to repair it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Takes none."""

    def run(self, args: argparse.Namespace) -> int:  # noqa: ARG002  (the shape of a command)
        """Prints the report."""
        findings = examine()
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{finding.level:<8} {finding.subject:<{width}}  {finding.detail}")
            if finding.remedy:
                print(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
        works = cpu_works(findings)
        problems = sum(finding.level is Level.PROBLEM for finding in findings)
        state = "works" if works else "does not work"
        print(f"Transcription on the CPU {state}; problems found: {problems}.")
        return ExitCode.OK if works else ExitCode.UNUSABLE
