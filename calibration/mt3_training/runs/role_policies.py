"""Role policies: how a specialist is trained, by what its stem does in the music.

Contract: a `RolePolicy` is data, weights of losses and what is done to the audio; a run keeps its
own in its configuration (`mt3_training.runs.config.TrainConfig.policy`), so nothing that is
changed here changes a run that was begun.  A run without one weighs and augments as if all weights
were one.  `policies` are those that come with the package, one for each role of
`mt3_runtime.notes.stems`; which one a stem gets may be chosen (`policy_for`).

The numbers are in ``role_policies.json``.  They are first choices: what decides between them is
the comparison of `mt3_training.stem_training`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import stem_named
from mt3_synthesis.augment import AugmentConfig
from mt3_training.examples.dataset import ROLLS, Bleed
from mt3_training.examples.tables import KINDS
from mt3_training.runs.typed_json import read

DATA = "role_policies.json"

NONE = "none"
"""Stands for training without a policy."""


@dataclass(frozen=True)
class RolePolicy:
    """Weights of losses, and augmentation.

    Attributes:
        name: The role, or another word for it.
        tokens: Weights of the cross-entropy by kind of token (`KINDS`); 1 where none is named.
        rolls: Weights of the frame-wise losses by roll (`ROLLS`); 1 where none is named.
        augment: What is done to the audio.
        bleed: How often, and how loudly, other instruments are heard that are not labelled.
    """

    name: str
    tokens: Mapping[str, float] = field(default_factory=dict)
    rolls: Mapping[str, float] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    bleed: Bleed = field(default_factory=Bleed)

    def __post_init__(self) -> None:
        for what, weights, known in (("tokens", self.tokens, KINDS), ("rolls", self.rolls, ROLLS)):
            strange = sorted(set(weights) - set(known))
            if strange:
                raise OptionError(
                    f"policy {self.name}: there are no {what} {strange}; expected some of "
                    f"{', '.join(known)}"
                )
            if not all(0.0 <= weight < math.inf for weight in weights.values()):
                raise OptionError(
                    f"policy {self.name}: weights of {what} are {dict(weights)}; expected numbers "
                    "from 0 on"
                )

    @property
    def token_weights(self) -> tuple[float, ...]:
        """Weights in the order of `KINDS`."""
        return tuple(float(self.tokens.get(kind, 1.0)) for kind in KINDS)

    @property
    def roll_weights(self) -> tuple[float, ...]:
        """Weights in the order of `ROLLS`."""
        return tuple(float(self.rolls.get(roll, 1.0)) for roll in ROLLS)

    @classmethod
    def from_dict(cls, data: object, where: str) -> RolePolicy:
        """A policy from JSON; the inverse of `dataclasses.asdict`.

        Raises:
            OptionError: A value is missing, unknown or out of range.
        """
        if not isinstance(data, Mapping):
            raise OptionError(f"{where}: expected an object, found {data!r}")
        parts = {
            "augment": read(AugmentConfig, data.get("augment"), f"{where}: augment"),
            "bleed": read(Bleed, data.get("bleed"), f"{where}: bleed"),
        }
        return read(cls, {**data, **parts}, where)


@functools.cache
def policies() -> dict[str, RolePolicy]:
    """The policies of the package, by name."""
    text = files(__package__).joinpath(DATA).read_text(encoding="utf-8")
    return {
        name: RolePolicy.from_dict({"name": name, **values}, f"{DATA}: {name}")
        for name, values in json.loads(text).items()
    }


def policy_named(name: str) -> RolePolicy | None:
    """A policy by its name, or from a JSON file; None for `NONE`.

    Raises:
        OptionError: There is no such policy, and no file that can be read as one.
    """
    known = policies()
    if name == NONE or name in known:
        return known.get(name)
    try:
        data = json.loads(Path(name).read_bytes())
    except OSError as error:
        raise OptionError(
            f"there is no policy {name!r}, and no file of that name can be read "
            f"({error.strerror}); expected one of {', '.join(known)}, {NONE}, or a JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{name} is not valid JSON ({error})") from error
    return RolePolicy.from_dict(data, name)


def policy_for(stem: str, chosen: str | None = None) -> RolePolicy | None:
    """The policy of a stem: the chosen one, else that of its role; None without a stem.

    Raises:
        OptionError: There is no such stem or policy.
    """
    if chosen is not None:
        return policy_named(chosen)
    return policies()[stem_named(stem).role.value] if stem else None
