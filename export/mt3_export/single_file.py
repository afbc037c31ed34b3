"""Writes a bundle whose only graph is a whole model: samples in, tokens and log-probabilities out.

It is made of a bundle's own encoder and decoder, byte for byte the same parameters, so it needs no
checkpoint.  The manifest is the bundle's but for its list of graphs: what a program needs to turn
tokens into notes stands there.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mt3_export.bundle_weights import parsed_graph
from mt3_export.bundle_writer import new_bundle, save_graph
from mt3_export.graphs.complete_graph import PROFILE, STARTS, Start, build_complete
from mt3_runtime.bundles.bundle import EXPORT_ID_KEY, MANIFEST, MAX_TOKENS_KEY, Bundle, Manifest
from mt3_runtime.errors import OptionError


def export_single_file(
    bundle: Bundle, out: str | os.PathLike[str], *, start: Start = "samples"
) -> Manifest:
    """Builds the graph of a whole model and writes it with a manifest of its own.

    Args:
        bundle: The model, with profile ``cpu``.
        out: Folder to make, or a file that ends in ``.mt3``; an older bundle there is replaced.
        start: What the graph reads: "samples" of segments, or their "features".

    Raises:
        BundleError: A graph is damaged, or there is none of that profile.
        OptionError: An unknown ``start``, or the model has parts that a single graph has not.
        OutputError: ``out`` is in the way or cannot be written; nothing is left behind.
    """
    if start not in STARTS:
        raise OptionError(f"start must be one of {', '.join(STARTS)}, got {start!r}.")
    old = bundle.manifest
    if not old.precision.exact:
        raise OptionError(
            f"{bundle.path} is of precision {old.precision}; a single graph is made of exact "
            "ones. Start from the bundle it was made of."
        )
    encoder, decoder = (
        parsed_graph(bundle, bundle.graph(role, PROFILE)) for role in ("encoder", "decoder")
    )
    metadata = {
        EXPORT_ID_KEY: old.export_id,
        MAX_TOKENS_KEY: str(old.decoding.max_tokens),
        "mt3.role": "complete",
        "mt3.profile": PROFILE,
    }
    model = build_complete(encoder, decoder, old, start=start, metadata=metadata)
    with new_bundle(Path(out)) as folder:
        graph = save_graph(
            model,
            folder,
            role="complete",
            profile=PROFILE,
            cache="concat",
            cross_key_transposed=bundle.graph("decoder", PROFILE).cross_key_transposed,
        )
        manifest = replace(old, graphs=(graph,))
        (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest
