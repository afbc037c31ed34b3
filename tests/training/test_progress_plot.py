"""The picture of a training run."""

from __future__ import annotations

from mt3_training.examples.tables import LOG, LOG_COLUMNS, SCORE_COLUMNS, SCORES, Table
from mt3_training.runs.checkpointing import RunFolder
from mt3_training.runs.progress_plot import PICTURE, draw, save_picture
from tests import needs
from tests.training.synthetic import tiny

needs.package("matplotlib")


def tables(folder):
    log, scores = Table(folder / LOG, LOG_COLUMNS), Table(folder / SCORES, SCORE_COLUMNS)
    for step in (50, 100, 150):
        where = {"step": step, "examples": 16 * step, "stage": "short" if step < 150 else "long"}
        log.append({**where, "loss": 300.0 / step, "pitch": 400.0 / step, "drum": None})
        scores.append({**where, "onset_f1": step / 200.0, "onset_precision": None})
    return log, scores


def test_curves_show_the_tables(tmp_path):
    log, scores = tables(tmp_path)
    figure = draw(log.rows(), scores.rows(), title="run 7")
    upper, lower = figure.axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in upper.lines}
    assert curves["all tokens"] == [[0.8, 6.0], [1.6, 3.0], [2.4, 2.0]]
    assert curves["pitch"] == [[0.8, 8.0], [1.6, 4.0], [2.4, 2.66667]]
    assert "drum" not in curves
    below = {line.get_label(): line.get_xydata()[:, 1].tolist() for line in lower.lines}
    assert below["onset F1"] == [0.25, 0.5, 0.75]
    assert "precision" not in below
    starts = [line.get_xdata()[0] for line in lower.lines if len(line.get_xdata()) == 2]
    assert starts == [0.8, 2.4]
    assert [text.get_text().strip() for text in upper.texts] == ["short", "long"]


def test_the_picture_is_a_file_of_the_folder(tmp_path):
    folder = RunFolder.prepare(tmp_path / "run 7", tiny())
    save_picture(folder)  # nothing to see yet
    tables(folder.path)
    save_picture(folder)
    text = (folder.path / PICTURE).read_text()
    assert "run 7" in text
    assert "onset F1" in text
    before = text
    save_picture(folder)
    assert (folder.path / PICTURE).read_text() == before
