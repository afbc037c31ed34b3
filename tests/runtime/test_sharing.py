"""One model for many: in threads, in other processes, and copied."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_runtime import loading, transcribe
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import BundleError, BundleNotFoundError, MT3Error, OptionError
from mt3_runtime.loading import clear_cache, load_model
from mt3_runtime.model import Model
from tests.pace import HANGS

METHODS = [m for m in ("spawn", "forkserver") if m in multiprocessing.get_all_start_methods()]


@pytest.fixture(autouse=True)
def _nothing_kept():
    clear_cache()
    yield
    clear_cache()


@pytest.fixture
def bundle(tiny_bundle, tmp_path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def digest(model: Model, audio) -> str:
    """What a worker does."""
    return model.transcribe_notes(audio).token_digest


# Pickled and copied ------------------------------------------------------------------------------


def test_a_model_travels_as_its_path_and_arguments(tiny_bundle, audio, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny_bundle.parent)
    with load_model(
        f"./{tiny_bundle.name}", device="cpu", threads=1, decoding="t5x", profile="portable"
    ) as model:
        model.auto_filter = "classic"
        data = pickle.dumps(model)
        expected = digest(model, audio)
    assert len(data) < 2000
    monkeypatch.chdir(tmp_path)  # the path is as good from anywhere
    with pickle.loads(data) as again:
        assert again.device == "cpu (ONNX Runtime {}, profile portable, threads: 1)".format(
            again.device.split()[3].rstrip(",")
        )
        assert (again.path, again.auto_filter, again.decoding) == (tiny_bundle, "classic", "t5x")
        assert digest(again, audio) == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_will_do(tiny_model, protocol):
    assert pickle.loads(pickle.dumps(tiny_model, protocol)).info == tiny_model.info


@pytest.mark.parametrize("method", METHODS)
def test_a_model_as_argument_of_another_process(tiny_model, audio, method):
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(digest, tiny_model, audio).result() == digest(tiny_model, audio)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_model_of_its_own(tiny_model, audio, make):
    expected = digest(tiny_model, audio)
    other = make(tiny_model)
    tiny_model.close()
    assert digest(other, audio) == expected
    (inside,) = copy.deepcopy([other])
    assert inside is not other


def test_what_was_closed_or_made_by_hand_is_refused(tiny_bundle, tiny_model):
    tiny_model.close()
    for model in (tiny_model, Model(Bundle(tiny_bundle), None)):
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(OptionError, match="load_model"):
                call(model)


def test_another_bundle_at_that_path_is_refused(bundle, tiny_weights):
    with load_model(bundle) as model:
        data = pickle.dumps(model)
    shutil.rmtree(bundle)
    source = {"layout": "seeded", "digest": "1" * 64}
    export_bundle(tiny_weights, variant_named("magenta_mt3"), bundle, source=source)
    with pytest.raises(BundleError, match=r"exported again\. Load .* with load_model"):
        pickle.loads(data)
    shutil.rmtree(bundle)
    with pytest.raises(BundleNotFoundError):
        pickle.loads(data)


def test_results_and_errors_travel(tiny_model, audio):
    result = tiny_model.transcribe_notes(audio)
    assert pickle.loads(pickle.dumps(result)) == result
    pending = [MT3Error]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        again = pickle.loads(pickle.dumps(kind("what happened")))
        assert (type(again), str(again)) == (kind, "what happened")


# Threads -----------------------------------------------------------------------------------------


def test_the_first_calls_of_many_threads_load_one_model(tiny_bundle, audio, monkeypatch):
    loads = []
    real = load_model

    def watched(*args, **options):
        loads.append(args)
        return real(*args, **options)

    monkeypatch.setattr(loading, "load_model", watched)
    start, calls = threading.Barrier(4), range(4)

    def call(_: int) -> bytes:
        start.wait()
        return pickle.dumps(transcribe(audio, tiny_bundle).tracks)

    with ThreadPoolExecutor(4) as pool:
        results = set(pool.map(call, calls))
    assert len(results) == 1
    assert len(loads) == 1


def test_threads_change_and_clear_the_kept_model(tiny_bundle, bundle, monkeypatch):
    """At a switch interval of a microsecond, with models that cost nothing to load."""

    class Cheap:
        def __init__(self, path) -> None:
            self.path = path

    monkeypatch.setattr(loading, "load_model", lambda path, device: Cheap(path))
    interval, wrong = sys.getswitchinterval(), []

    def work(number: int) -> None:
        for turn in range(2000):
            path = (tiny_bundle, bundle)[(turn + number) % 2]
            if loading._kept.get(path, "cpu").path != path:
                wrong.append(path)
            if turn % 7 == 0:
                clear_cache()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_process_that_is_forked_while_a_thread_loads_is_not_stuck(tiny_bundle, monkeypatch):
    loading_now, release = threading.Event(), threading.Event()

    def slow(path, device):
        loading_now.set()
        release.wait(HANGS)
        return np.zeros(1)

    monkeypatch.setattr(loading, "load_model", slow)
    thread = threading.Thread(target=loading._kept.get, args=(tiny_bundle, "cpu"))
    thread.start()
    loading_now.wait(HANGS)
    child = multiprocessing.get_context("fork").Process(target=clear_cache)
    child.start()
    child.join(HANGS)
    stuck = child.is_alive()
    child.kill()
    release.set()
    thread.join()
    assert not stuck
    assert child.exitcode == 0
