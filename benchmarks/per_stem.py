"""Transcribing stems one by one beside the mix at once, and line-ups of stems beside each other.

Made-up songs of four stems, which bleed into each other: the F1 of notes that are on the right
stem, of the mix and of the stems with each kind of line-up, by stem, with 95 % intervals over
songs.  The sounds are those of a collection that the model has not learned, if one is installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mt3_evaluation.evaluation import Evaluation, Findings, Recording, Result, score
from mt3_evaluation.labels import read_labels
from mt3_evaluation.scoreboards.stem_scores import stem_document, stem_table
from mt3_evaluation.scoreboards.stem_songs import BLEED, StemSong, write_stem_songs
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.per_stem import StemModel, merge, stem_files
from mt3_runtime.stem_routing.lineup_choice import LineupChoice, Route, relabelled, route
from mt3_runtime.transcription import Transcription
from mt3_synthesis.bank import build_bank, load_bank
from mt3_synthesis.mixer import Palette
from mt3_synthesis.soundfonts import source_named

CHOICES = (*LineupChoice, None)


def main() -> None:
    """Makes the songs, transcribes them in every way, and reports."""
    made = argparse.ArgumentParser(description=__doc__)
    add = made.add_argument
    add("-m", "--model", default="default", help="name or path of the general model")
    add("--sounds", nargs="+", default=["timgm6mb"], help="collections, or banks as .npz files")
    add("--songs", type=int, default=12, help="number of songs")
    add("--seconds", type=float, default=12.0, help="length of each")
    add("--bleed", type=float, default=BLEED, help="level of the other stems against each [dB]")
    add("--threads", type=int, help="CPU threads")
    add("--json", type=Path, help="write the scores there")
    options = made.parse_args()
    banks = [
        load_bank(name) if name.endswith(".npz") else build_bank(source_named(name))
        for name in options.sounds
    ]
    path = resolve_model(options.model)
    report = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        load_model(path, threads=options.threads) as model,
    ):
        songs = write_stem_songs(
            Path(folder),
            Palette(banks),
            count=options.songs,
            seconds=options.seconds,
            bleed=options.bleed,
        )
        results = model.transcribe_many([song.mix for song in songs])
        report["mix"] = judged(songs, results)
        for choice in CHOICES:
            name = "by stem" if choice is None else str(choice)
            report[name] = judged(songs, separated(model, StemModel.at(path), songs, choice))
    for name, evaluation in report.items():
        print(f"{name}\n{stem_table(evaluation)}\n")
    if options.json:
        whole = {name: stem_document(evaluation) for name, evaluation in report.items()}
        options.json.write_text(json.dumps(whole, indent=1))


def separated(
    model: Model, general: StemModel, songs: Iterable[StemSong], choice: LineupChoice | None
) -> list[Transcription]:
    """Songs from their stems, each with a kind of line-up; None takes that of the stem."""
    every = list(songs)
    plans = {
        song.folder: [route(file, general, choice) for file in stem_files(song.files)]
        for song in every
    }
    found: dict[Path, Transcription] = {}
    routes: list[Route] = [plan for some in plans.values() for plan in some]
    for lineup in dict.fromkeys(plan.lineup for plan in routes):
        some = [plan for plan in routes if plan.lineup == lineup]
        paths = [plan.file.path for plan in some]
        for plan, result in zip(
            some, model.transcribe_many(paths, instruments=lineup), strict=True
        ):
            found[plan.file.path] = relabelled(result, plan.program)
    return [merge(found[plan.file.path] for plan in plans[song.folder]) for song in every]


def judged(songs: Iterable[StemSong], results: Iterable[Transcription]) -> Evaluation:
    """Scores of whole songs."""
    scored: list[Result] = []
    for song, result in zip(songs, results, strict=True):
        labels = read_labels([song.mix.with_suffix(".mid")])
        scored.append(score(Recording(song.folder.name, labels), Findings(result.notes)))
    return Evaluation(tuple(scored))


if __name__ == "__main__":
    main()
