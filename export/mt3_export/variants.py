"""Model variants as data: features, segments, vocabulary, note rules, decoding limits.

A bundle carries these tables, so a new variant of a known family is an entry here and nothing in
the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mt3_export.checkpoints.mr_mt3 import CONTEXTS
from mt3_runtime.audio.log_mel import FeatureConfig
from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_runtime.notes.confidence import Calibration, Weights
from mt3_runtime.notes.note_rules import TORCH_PORT_QUIRKS, YOURMT3_CHANNELS, Channel, NoteRules
from mt3_runtime.notes.vocabulary import EOS, PAD, Event, EventKind, Vocabulary

#: T5X's beam search as the published notebook calls it: one beam, this length exponent.
T5X_ALPHA = 0.6


#: How far notes of Magenta's MT3 can be trusted: fitted to the test set "trust", 60 recordings of
#: 12 s, by ``mt3 evaluate trust/ -m magenta_mt3 --confidence`` (docs/confidence.md).
MAGENTA_CONFIDENCE = Calibration(
    pitched=Weights(bias=-0.2035, onset=0.0, pitch=0.2233, program=0.0, offset=0.0),
    drums=Weights(bias=-0.4667, onset=0.0428, pitch=0.0737, program=0.0, offset=0.0),
)


@dataclass(frozen=True)
class Variant:
    """The run-time half of a variant; its weights come from a checkpoint.

    Attributes:
        name: Name of the variant, as on the command line.
        family: Variants of one family share their graphs.
        licence: Licence of the weights, as far as their authors state one.
        features: Front end.
        segments: How audio is cut.
        vocabulary: Meaning of the token ids.
        notes: How events become notes.
        decoding: Start and end tokens, token limit.
        confidence: How reliable its notes are, if that was measured.
        memory: M, rows of memory that the encoder makes of the previous segment's tokens.
    """

    name: str
    family: str
    licence: str
    features: FeatureConfig
    segments: SegmentConfig
    vocabulary: Vocabulary
    notes: NoteRules
    decoding: DecodingSpec
    confidence: Calibration | None = None
    memory: int = 0


def _mr_mt3(name: str, memory: int) -> Variant:
    """A model of MR-MT3's authors; without memory it is MT3 but for its features."""
    vocabulary = Vocabulary.mt3()
    tie = vocabulary.encode(Event(EventKind.TIE, 0))
    return Variant(
        name=name,
        family="mr_mt3",
        licence="MIT",
        features=FeatureConfig.mr_mt3(),
        segments=SegmentConfig(),
        vocabulary=vocabulary,
        notes=NoteRules.mt3(quirks=TORCH_PORT_QUIRKS),
        decoding=DecodingSpec(
            PAD,
            EOS,
            # The original returns 1024 tokens of a segment, its start token among them.
            max_tokens=1023,
            beam_alpha=T5X_ALPHA,
            memory_tokens=1024 if memory else 0,
            memory_start=(tie, EOS) if memory else (),
        ),
        memory=memory,
    )


def _yourmt3(
    name: str, features: FeatureConfig, *, max_tokens: int, channels: Sequence[Channel] = ()
) -> Variant:
    """A variant of YourMT3; all of them have one vocabulary, and cut audio alike."""
    return Variant(
        name=name,
        family="yourmt3",
        licence="Apache-2.0 or GPL-3.0, stated both ways",
        features=features,
        segments=SegmentConfig.yourmt3(features.hop),
        vocabulary=Vocabulary.yourmt3(),
        notes=NoteRules.yourmt3(channels=channels),
        # Their loop takes the first token before it begins to look for an end.
        decoding=DecodingSpec(PAD, EOS, max_tokens=max_tokens, beam_alpha=T5X_ALPHA, min_tokens=2),
    )


def _yourmt3_variants() -> Iterator[Variant]:
    """All of them; those trained with a pitch shifter differ in their weights alone."""
    linear = FeatureConfig.yourmt3_linear()
    yield _yourmt3("ymt3_plus", FeatureConfig.yourmt3_mel(), max_tokens=1024)
    yield _yourmt3("yptf_single", linear, max_tokens=1024)
    for name in ("yptf_multi", "yptf_multi_ps", "yptf_moe_multi", "yptf_moe_multi_ps"):
        yield _yourmt3(name, linear, max_tokens=256, channels=YOURMT3_CHANNELS)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="magenta_mt3",
            family="mt3",
            licence="not stated for the weights; the code is Apache-2.0",
            features=FeatureConfig(),
            segments=SegmentConfig(),
            vocabulary=Vocabulary.mt3(),
            notes=NoteRules.mt3(),
            # The notebook decodes up to 1024 targets.
            decoding=DecodingSpec(PAD, EOS, max_tokens=1024, beam_alpha=T5X_ALPHA),
            confidence=MAGENTA_CONFIDENCE,
        ),
        Variant(
            name="magenta_ismir2021",
            family="mt3",
            licence="not stated for the weights; the code is Apache-2.0",
            features=FeatureConfig(frames=512),
            segments=SegmentConfig(samples=65536),
            vocabulary=Vocabulary.ismir2021(),
            notes=NoteRules.ismir2021(),
            # As for mt3: the notebook's limit does not depend on the model.
            decoding=DecodingSpec(PAD, EOS, max_tokens=1024, beam_alpha=T5X_ALPHA),
        ),
        Variant(
            name="mt3_pytorch",
            family="mt3",
            licence="none stated; converted from Magenta's weights",
            features=FeatureConfig(),
            segments=SegmentConfig(),
            vocabulary=Vocabulary.mt3(),
            notes=NoteRules.mt3(quirks=TORCH_PORT_QUIRKS),
            # max_length 1024 counts the start token.
            decoding=DecodingSpec(PAD, EOS, max_tokens=1023, beam_alpha=T5X_ALPHA),
            confidence=MAGENTA_CONFIDENCE,
        ),
        *(_mr_mt3(name, memory) for memory, name in CONTEXTS.items()),
        *_yourmt3_variants(),
    )
}


FRONT_ENDS = ("trained", "mt3-infer")
"""Features that a bundle may have: those of the training, or those of another program."""


def with_front_end(variant: Variant, front_end: str) -> Variant:
    """A variant with other features than its weights were trained with, to see what that does.

    Args:
        variant: Of Magenta's MT3.
        front_end: One of `FRONT_ENDS`; see `FeatureConfig.mt3_infer`.

    Raises:
        OptionError: The front end is unknown, or was never used with such a variant.
    """
    if front_end == "trained":
        return variant
    if front_end != "mt3-infer" or variant.features != FeatureConfig():
        raise OptionError(
            f"Features of {front_end!r} were never used with {variant.name}; they are for "
            "magenta_mt3 and mt3_pytorch, and those of the training are for all."
        )
    return replace(
        variant,
        name=f"{variant.name}_as_mt3_infer",
        features=FeatureConfig.mt3_infer(),
        segments=replace(variant.segments, padding="full"),
        confidence=None,
    )


def variant_named(name: str) -> Variant:
    """Looks up a variant.

    Raises:
        CheckpointError: This version cannot export it.
    """
    if name not in VARIANTS:
        raise CheckpointError(
            f"Variant {name!r} cannot be exported by this version; it knows {', '.join(VARIANTS)}."
        )
    return VARIANTS[name]
