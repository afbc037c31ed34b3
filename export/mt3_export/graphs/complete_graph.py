"""Builds one graph of a whole model: samples of segments in, tokens and log-probabilities out.

    samples  [N, S] float32   segments, zeros behind the end of the audio
    frames   [N] int64        rows of features that belong to the audio (padding "extra_hop" only)
    index    [N] int64        number of the segment in its recording     (with a grammar only)
    last     [N] bool         whether it is the recording's last segment (with a grammar only)
 ->
    tokens    [N, L] int64    L steps were needed; -1 behind a row's end-of-sequence
    log_probs [N, L] float32  of the tokens, 0 behind the end

It is what a program without this runtime needs: no spectrogram, no cache and no grammar of its own,
one call for some segments.  With ``start="features"`` the input is ``features`` [N, F, bins] in
place of samples and frames, for hosts where double precision is slow.

The graph is made of a bundle's own two: the encoder's nodes stand in front, the decoder's are the
body of a Loop whose state are the cache, the last tokens and the state of the grammar.  Parameters
of the step are initialisers of the body, where casts of fp16 ones are folded once.  Rows that ended
go on until all have; their results do not depend on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from onnx import TensorProto, helper

from mt3_export.graphs.front_end_graph import add_features
from mt3_export.graphs.graph_builder import Dim, Graph
from mt3_export.graphs.order_graph import CanonicalMask, OrderState, add_ends
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    import onnx

    from mt3_runtime.bundles.manifest import Manifest

PROFILE = "cpu"
"""The profile whose cache grows by itself; its operators are in every ONNX Runtime."""

Start = Literal["samples", "features"]
"""What the graph reads."""

STARTS: tuple[Start, ...] = get_args(Start)


class _Part(Graph):
    """A graph that takes in nodes of finished ones, or becomes the body of a loop."""

    prefix = ""

    def fresh(self, stem: str) -> str:
        return super().fresh(self.prefix + stem)

    def take(self, model: onnx.ModelProto, wired: dict[str, str]) -> dict[str, str]:
        """Copies nodes and initialisers of a graph and returns the new names of its outputs.

        Args:
            model: Whose inputs are all in ``wired``.
            wired: Its inputs' names here.
        """
        names = dict(wired)
        for tensor in model.graph.initializer:
            kept = type(tensor)()
            kept.CopyFrom(tensor)
            if "." not in tensor.name:  # parameters keep theirs, constants do not
                kept.name = names[tensor.name] = self.fresh("const")
            self._initializers.append(kept)
        for node in model.graph.node:
            for name in node.output:
                if name:
                    names[name] = self.fresh(node.op_type)
        for node in model.graph.node:
            copy = type(node)()
            copy.CopyFrom(node)
            copy.name = self.fresh(f"node_{node.op_type}")
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names.get(name, name) for name in node.output]
            self._nodes.append(copy)
        return {value.name: names[value.name] for value in model.graph.output}

    def body(self) -> onnx.GraphProto:
        """Everything as a graph that a node can hold."""
        return helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._initializers
        )


class _Body(_Part):
    prefix = "step_"


def build_complete(
    encoder: onnx.ModelProto,
    decoder: onnx.ModelProto,
    manifest: Manifest,
    *,
    start: Start = "samples",
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """Writes the graph of a whole model.

    Args:
        encoder: Its encoder of profile `PROFILE`.
        decoder: Its decoder step of that profile.
        manifest: Features, segments, vocabulary, decoding.
        start: What the graph reads.
        metadata: Written to the model's ``metadata_props``.

    Raises:
        OptionError: The model has parts that are not here: channels, memory, another grammar.
    """
    if manifest.model.channels > 1 or manifest.model.memory:
        raise OptionError(
            f"{manifest.name} decodes several channels or remembers segments, which a single graph "
            "does not; export it without --single-file."
        )
    opset = next(item.version for item in decoder.opset_import if item.domain == "")
    graph = _Part("mt3_complete", opset=opset)
    features = _features(graph, manifest, start)
    rows = graph.op("Shape", features, start=0, end=1)
    cross = graph.take(encoder, {"features": features})
    tokens, log_probs = _Decoding(graph, manifest, rows, cross).add(decoder)
    for name, found, dtype in (
        ("tokens", tokens, TensorProto.INT64),
        ("log_probs", log_probs, TensorProto.FLOAT),
    ):
        graph.op("Transpose", found, perm=[1, 0], out=name)
        graph.output(name, dtype, ["rows", "steps"])
    return graph.build(metadata or {})


def _features(graph: Graph, manifest: Manifest, start: Start) -> str:
    config, segments = manifest.features, manifest.segments
    if start == "features":
        shape: list[Dim] = ["rows", config.frames, config.bins]
        return graph.input("features", TensorProto.FLOAT, shape)
    samples = graph.input("samples", TensorProto.FLOAT, ["rows", segments.samples])
    shorter = segments.padding == "extra_hop"
    frames = graph.input("frames", TensorProto.INT64, ["rows"]) if shorter else ""
    return add_features(graph, config, samples, segments.samples, frames=frames)


class _Decoding:
    """The loop over decoder steps."""

    def __init__(self, graph: Graph, manifest: Manifest, rows: str, cross: dict[str, str]) -> None:
        self._graph, self._manifest, self._rows, self._cross = graph, manifest, rows, cross
        self._opset = graph.opset
        self._grammar = CanonicalMask(manifest) if manifest.decoding.orderly else None
        self._first = self._end = self._everything = ""
        if self._grammar:
            axis = graph.constant([1], np.int64)
            index = graph.input("index", TensorProto.INT64, ["rows"])
            last = graph.input("last", TensorProto.BOOL, ["rows"])
            index, last = (graph.op("Unsqueeze", name, axis) for name in (index, last))
            rate = manifest.vocabulary.steps_per_second
            self._first = graph.op("Equal", index, graph.constant(0, np.int64))
            self._end = add_ends(graph, manifest.segments, rate, index, last)
        else:
            size = graph.constant([manifest.vocabulary.size], np.int64)
            shape = graph.op("Concat", rows, size, axis=0)
            self._everything = graph.op("Expand", graph.constant(1, np.bool_), shape)

    def add(self, decoder: onnx.ModelProto) -> tuple[str, str]:
        """Adds the loop; returns tokens and log-probabilities, both [L, N]."""
        graph, decoding, model = self._graph, self._manifest.decoding, self._manifest.model
        wide = [model.heads, 0, model.head_dim]
        shape = graph.op("Concat", self._rows, graph.constant(wide, np.int64), axis=0)
        empty = graph.op("Expand", graph.constant(0.0, np.float32), shape)
        column = graph.op("Concat", self._rows, graph.constant([1], np.int64), axis=0)
        start = graph.op("Expand", graph.constant(decoding.start_id, np.int64), column)
        running = graph.op("Expand", graph.constant(0, np.bool_), column)
        caches = [f"{what}_{layer}" for layer in range(model.layers) for what in ("key", "value")]
        order = self._grammar.start(graph, self._rows).names() if self._grammar else []
        state = [start, running, *order, *(empty for _ in caches)]
        outs = [graph.fresh("Loop") for _ in range(len(state) + 2)]
        graph.ops(
            "Loop",
            graph.constant(decoding.max_tokens, np.int64),
            graph.constant(1, np.bool_),
            *state,
            outs=outs,
            body=self._body(decoder, caches),
        )
        return outs[-2], outs[-1]

    def _body(self, decoder: onnx.ModelProto, caches: list[str]) -> onnx.GraphProto:
        body = _Body("mt3_step", opset=self._opset)
        types = OrderState.types() if self._grammar else []
        count = body.input("step", TensorProto.INT64, [])
        body.input("go_on", TensorProto.BOOL, [])
        token = body.input("token", TensorProto.INT64, ["rows", 1])
        ended = body.input("ended", TensorProto.BOOL, ["rows", 1])
        order = [
            body.input(f"order_{i}", kind, ["rows", f"wide_{i}"]) for i, kind in enumerate(types)
        ]
        model = self._manifest.model
        for name in caches:
            shape: list[Dim] = ["rows", model.heads, "past", model.head_dim]
            body.input(f"past_{name}", TensorProto.FLOAT, shape)

        said = OrderState(*order) if self._grammar else None
        allowed = self._everything
        if self._grammar and said:
            allowed = self._grammar.mask(body, said, self._first, self._end)
        position = body.op("Cast", count, to=TensorProto.INT32)
        wired = {f"past_{name}": f"past_{name}" for name in caches} | self._cross
        wired |= {
            "token_ids": token,
            "positions": body.op("Expand", position, self._rows),
            "allowed": allowed,
        }
        found = body.take(decoder, wired)
        new, over, row = self._record(body, found, count, ended)
        after = []
        if self._grammar and said:
            after = self._grammar.advance(body, said, found["next_ids"]).names()
        results = [
            (self._go_on(body, over), TensorProto.BOOL),
            (found["next_ids"], TensorProto.INT64),
            (over, TensorProto.BOOL),
            *zip(after, types, strict=True),
            *((found[f"present_{name}"], TensorProto.FLOAT) for name in caches),
            (new, TensorProto.INT64),
            (row, TensorProto.FLOAT),
        ]
        for name, kind in results:
            body.output(name, kind, [])
        return _untyped(body.body())

    def _record(
        self, body: Graph, found: dict[str, str], count: str, ended: str
    ) -> tuple[str, str, str]:
        """What rows [N] said, whether they have ended now [N, 1], and the log-probabilities [N]."""
        decoding = self._manifest.decoding
        axis = body.constant([1], np.int64)
        zero, one = (body.constant([n], np.int64) for n in (0, 1))
        best = body.op("Slice", found["top_log_probs"], zero, one, axis)
        token = found["next_ids"]
        written = body.op("Where", ended, body.constant(-1, np.int64), token)
        sure = body.op("Where", ended, body.constant(0.0, np.float32), best)
        end = body.op("Equal", token, body.constant(decoding.eos_id, np.int64))
        if decoding.min_tokens > 1:
            least = body.constant(decoding.min_tokens - 1, np.int64)
            end = body.op("And", end, body.op("GreaterOrEqual", count, least))
        over = body.op("Or", ended, end)
        return body.op("Squeeze", written, axis), over, body.op("Squeeze", sure, axis)

    @staticmethod
    def _go_on(body: Graph, over: str) -> str:
        """Whether any row has not ended: bool []."""
        numbers = body.op("Cast", over, to=TensorProto.INT32)
        least = body.op("ReduceMin", numbers, keepdims=0)
        return body.op("Not", body.op("Cast", least, to=TensorProto.BOOL))


def _untyped(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Leaves out the shapes of outputs, which grow with every step."""
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return graph
