"""Material small enough for tests, with labels that the seeded network knows.

Seeded weights hear nothing in music, so what they say about it is taken for true: the exact model
then has an F1 of 1, and everything else less.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mt3_evaluation.labels import Labels
from mt3_quantisation.gates.material import Excerpt, Material, Part
from mt3_runtime.loading import load_model
from mt3_synthesis.soundfonts import Role
from tests.synthesis.sounds import tiny_bank

PARTS = (Part("calibration", (Role.TRAIN,), 2, 3.0), Part("check", (Role.CHOICE,), 2, 4.0))
BANKS = {"calibration": [tiny_bank()], "check": [tiny_bank("other", step=6)]}


def plain_material() -> Material:
    """Music with its true labels."""
    return Material(BANKS, parts=PARTS)


def known_material(bundle: Path) -> Material:
    """The same music, labelled by a bundle's own model."""
    material = plain_material()
    with load_model(bundle, threads=1) as model:

        def known(excerpt: Excerpt) -> Excerpt:
            tokens = model.forward(model.preprocess(excerpt.audio, excerpt.sample_rate))
            return replace(excerpt, labels=Labels(model.assemble(tokens)))

        for part in ("calibration", "check"):
            made = tuple(known(excerpt) for excerpt in getattr(material, part))
            material.__dict__[part] = made  # where `cached_property` looks first
    return material
