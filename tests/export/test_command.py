"""`mt3 export` as a user calls it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mt3_export.export_command import FRONT_END_NAMES
from mt3_export.variants import FRONT_ENDS, variant_named, with_front_end
from mt3_export.weights import Weights
from mt3_runtime.audio.log_mel import FeatureConfig
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import main
from mt3_runtime.errors import OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.models import catalogue
from mt3_runtime.models.catalogue import ModelFile
from tests.export.writers import write_kunato, write_t5x


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    """The small network in Magenta's layout."""
    path = tmp_path_factory.mktemp("t5x") / "mt3"
    write_t5x(path, tiny_weights.tensors)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))


def test_export_to_a_folder(checkpoint: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "model"
    arguments = ["export", str(checkpoint), "--variant", "magenta_mt3", "-o", str(out)]
    more = ["--profiles", "cpu, compat", "--stem", "bass"]
    assert main([*arguments, *more]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "not stated for the weights" in printed.err
    bundle = Bundle(out)
    assert bundle.profiles == ["cpu", "compat"]
    assert bundle.manifest.precision.weights == "fp16"
    assert bundle.manifest.stem == "bass"
    assert bundle.manifest.source["layout"] == "t5x"
    assert len(bundle.manifest.source["digest"]) == 64


@pytest.mark.parametrize("option", ["--weights", "--precision"])
def test_the_exact_weights_are_an_option_away(checkpoint: Path, tmp_path: Path, option) -> None:
    out = tmp_path / "model.mt3"
    assert main(["export", str(checkpoint), "-o", str(out), option, "fp32"]) == 0
    assert str(Bundle(out).manifest.precision) == "fp32"


def test_without_output_it_goes_where_names_are_looked_up(checkpoint: Path) -> None:
    assert main(["export", str(checkpoint)]) == 0
    with load_model("magenta_mt3") as model:
        assert model.info.name == "magenta_mt3"
        assert model.info.stem == "other"


def test_the_torch_layout_exports_too(tiny_weights: Weights, tmp_path: Path) -> None:
    write_kunato(tmp_path / "kunato", tiny_weights)
    assert main(["export", str(tmp_path / "kunato"), "-o", str(tmp_path / "model")]) == 0
    manifest = Bundle(tmp_path / "model").manifest
    assert manifest.variant == "mt3_pytorch"
    assert manifest.decoding.max_tokens == 1023
    assert manifest.notes.quirks == ("empty_without_eos", "unk_is_eos")


@pytest.fixture
def mirrored(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The small network as a model of the catalogue, `tiny` or `little`, served here."""
    files = [
        ModelFile(path.relative_to(checkpoint).as_posix(), "https://host.invalid/", len(raw),
                  hashlib.sha256(raw).hexdigest())
        for path in sorted(checkpoint.rglob("*")) if path.is_file()
        for raw in [path.read_bytes()]
    ]  # fmt: skip
    magenta = catalogue.get_model_info("magenta_mt3")
    tiny = dataclasses.replace(magenta, name="tiny", aliases=("little",), files=tuple(files))
    monkeypatch.setattr(catalogue, "list_models", lambda: (tiny,))
    handler = functools.partial(Handler, directory=str(checkpoint.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("MT3_MIRROR", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


class Handler(SimpleHTTPRequestHandler):
    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/tiny/", "/mt3/", 1))

    def log_message(self, *_: object) -> None:
        pass


def test_pull_then_export_then_load_by_name(mirrored: None, tmp_path: Path, capsys) -> None:
    assert main(["transcribe", "-m", "little", "song.wav"]) != 0
    assert main(["export", "little"]) == 3
    assert "mt3 models pull tiny" in capsys.readouterr().err
    assert main(["models", "pull", "little"]) == 0
    assert main(["export", "little"]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'cache' / 'bundles' / 'tiny'}\n")
    for name in ("tiny", "little", None):
        with load_model(name) as model:
            assert model.info.name == "tiny"
            assert model.info.variant == "magenta_mt3"
    assert main(["models", "remove", "little"]) == 0
    assert not list((tmp_path / "cache" / "bundles").iterdir())


def test_a_pulled_file_that_changed_is_not_read(mirrored: None, tmp_path: Path, capsys) -> None:
    assert main(["models", "pull", "tiny"]) == 0
    index = tmp_path / "cache" / "checkpoints" / "tiny" / "checkpoint"
    index.write_bytes(b"\x80" + index.read_bytes()[1:])
    assert main(["export", "tiny"]) == 3
    assert "is not the file the catalogue describes" in capsys.readouterr().err
    assert main(["models", "pull", "tiny"]) == 3
    assert "so it is not replaced. Move it elsewhere or delete it" in capsys.readouterr().err
    index.unlink()
    assert main(["models", "pull", "tiny"]) == 0
    assert main(["export", "tiny"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 3, "no checkpoint at 'nowhere'"),
        ([""], 3, "no checkpoint at ''"),
        (["x" * 300], 3, "no checkpoint at"),
        (["magenta_mt3"], 3, "mt3 models pull magenta_mt3"),
        (["CHECKPOINT", "--variant", "mt3_pytorch"], 3, "is magenta_mt3"),
        (["CHECKPOINT", "--profiles", "gpu"], 2, "cpu, portable, compat"),
        (["CHECKPOINT", "--profiles", ","], 2, "cpu, portable, compat"),
        (["CHECKPOINT", "--weights", "int8"], 2, "int8"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path,
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(checkpoint) if word == "CHECKPOINT" else word for word in arguments]
    assert main(["export", *given, "-o", str(tmp_path / "model")]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [("", 2, "-o needs"), ("file/model", 1, "no folder one may write in"), ("x" * 300, 1, "name")],
)
def test_a_place_in_the_way_is_found_before_the_work(
    checkpoint: Path, tmp_path: Path, capsys, monkeypatch, output: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    assert main(["export", str(checkpoint), "-o", output]) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_features_of_mt3_infer_are_marked_as_such(checkpoint: Path, tmp_path: Path) -> None:
    for name, features in (("right", "trained"), ("wrong", "mt3-infer")):
        arguments = ["export", str(checkpoint), "--features", features, "-o", str(tmp_path / name)]
        assert main(arguments) == 0
    right, wrong = (Bundle(tmp_path / name).manifest for name in ("right", "wrong"))
    assert (right.name, wrong.name) == ("magenta_mt3", "magenta_mt3_as_mt3_infer")
    assert right.export_id != wrong.export_id
    assert wrong.features == FeatureConfig.mt3_infer()
    assert (wrong.features.framing, wrong.features.power, wrong.features.high_hz) == (
        "centred", 2, 8000.0,
    )  # fmt: skip
    with load_model(tmp_path / "wrong") as model:
        assert model.preprocess(np.zeros(16000, np.float32)).shape == (1, 256, 512)


def test_without_output_other_features_do_not_replace_the_model(checkpoint: Path) -> None:
    assert main(["export", str(checkpoint), "--features", "mt3-infer"]) == 0
    with load_model("magenta_mt3_as_mt3_infer") as model:
        assert model.info.features.power == 2


def test_other_features_are_for_magentas_mt3_only() -> None:
    assert FRONT_END_NAMES == FRONT_ENDS
    for name in ("magenta_mt3", "mt3_pytorch"):
        variant = variant_named(name)
        assert with_front_end(variant, "trained") is variant
        assert with_front_end(variant, "mt3-infer").name == f"{name}_as_mt3_infer"
    for name, front_end in (("magenta_ismir2021", "mt3-infer"), ("magenta_mt3", "librosa")):
        with pytest.raises(OptionError, match="magenta_mt3 and mt3_pytorch"):
            with_front_end(variant_named(name), front_end)
