"""The engines that a bundle needs: one for the encoder, one per cache capacity of the decoder."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from mt3_engines.storage.keys import QUANTISED, RECIPE, EngineKey, EngineTarget, Hardware, Precision
from mt3_engines.storage.shapes import CAPACITIES, SLOTS, ShapePlan
from mt3_engines.storage.store import EngineInfo, EngineStore, graph_digests
from mt3_engines.versions import MAKERS, MakerName
from mt3_runtime.bundles.bundle import Bundle, Role
from mt3_runtime.errors import DeviceError, OptionError

#: The graphs engines are made of.
PROFILE = "portable"


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose when engines are built."""

    precision: Precision = "fp16"
    version_compatible: bool = False
    hardware: Hardware = "this"
    stripped: bool = False


@dataclass(frozen=True)
class EngineSet:
    """Engines that together run a bundle.

    Attributes:
        encoder: One.
        decoders: By capacity; all for the same numbers of rows.
        plan: Those numbers and capacities.
    """

    encoder: EngineInfo
    decoders: dict[int, EngineInfo]
    plan: ShapePlan

    @property
    def precision(self) -> Precision:
        """Of all of them."""
        return self.encoder.key.precision

    @property
    def arithmetic(self) -> str:
        """The same for people: with what the bundle has quantised, such as ``int8 in fp16``."""
        quantised = self.encoder.key.quantised
        return f"{quantised} in {self.precision}" if quantised else self.precision


def make_keys(
    bundle: Bundle, plan: ShapePlan, wish: BuildOptions, place: EngineTarget
) -> list[EngineKey]:
    """The keys of all engines of a bundle, the encoder's first.

    Raises:
        OptionError: Its graphs are of 16 bits already; engines get theirs when they are built.
    """
    if bundle.manifest.precision.arithmetic in ("fp16", "bf16"):
        raise OptionError(
            f"{bundle.path} is of precision {bundle.manifest.precision}, which is made for device "
            "cuda; build engines of the exact bundle, with --precision fp16."
        )
    digests = graph_digests(bundle, PROFILE, place.maker)
    arithmetic = bundle.manifest.precision.arithmetic

    def key(role: Role, slots: tuple[int, ...], capacity: int) -> EngineKey:
        return EngineKey(
            export_id=bundle.manifest.export_id,
            role=role,
            graph=digests[role],
            recipe=RECIPE,
            precision=wish.precision,
            slots=slots,
            capacity=capacity,
            tensorrt=place.tensorrt,
            capability=place.capability,
            gpu=place.gpu,
            version_compatible=wish.version_compatible,
            hardware=wish.hardware,
            stripped=wish.stripped,
            quantised=arithmetic if arithmetic in QUANTISED else "",
            maker=place.maker,
            targets=place.targets,
        )

    decoders = [key("decoder", plan.slots, capacity) for capacity in plan.capacities]
    return [key("encoder", plan.segments, 0), *decoders]


def build_command(bundle: Bundle, precision: Precision, maker: MakerName = "tensorrt") -> str:
    """What the user types to build a bundle's engines."""
    made_by = "" if maker == "tensorrt" else f" --for {maker}"
    return f"mt3 build {shlex.quote(str(bundle.path))}{made_by} --precision {precision}"


def choose(
    bundle: Bundle, store: EngineStore, place: EngineTarget, precision: Precision | None = None
) -> EngineSet:
    """Finds engines that run a bundle at a place.

    Args:
        bundle: The model.
        store: Where to look.
        place: Where they must run.
        precision: The wanted one; if None fp32 where that was built, as it is exact.

    Raises:
        DeviceError: There are none, or they are stale; the message names them and the command.
    """
    digests = graph_digests(bundle, PROFILE, place.maker)
    usable = [
        info
        for info in store.infos()
        if info.key.graph == digests[info.key.role]
        and info.key.export_id == bundle.manifest.export_id
        and info.key.recipe == RECIPE
        and precision in (None, info.key.precision)
        and not info.key.obstacles(place)
        and info.path.is_file()
    ]
    usable.sort(key=lambda info: (info.key.precision != "fp32", info.key.gpu != place.gpu))
    for encoder in (info for info in usable if info.key.role == "encoder"):
        found = _decoders(usable, encoder, bundle.manifest.decoding.max_tokens)
        if found is not None:
            return found
    raise _missing(bundle, store, place, precision or _built(store, digests) or "fp16")


def _built(store: EngineStore, digests: dict[str, str]) -> Precision | None:
    """The precision of an engine that there is for some graphs, wherever it runs."""
    found = (info.key for info in store.infos() if info.key.graph == digests[info.key.role])
    return next((key.precision for key in found), None)


def _decoders(usable: list[EngineInfo], encoder: EngineInfo, longest: int) -> EngineSet | None:
    """The largest family of decoders that goes with an encoder and holds every sequence."""
    families: dict[tuple[int, ...], dict[int, EngineInfo]] = {}
    for info in usable:
        if info.key.role == "decoder" and info.key.precision == encoder.key.precision:
            families.setdefault(info.key.slots, {}).setdefault(info.key.capacity, info)
    whole = {slots: found for slots, found in families.items() if max(found) >= longest}
    if not whole:
        return None
    slots = max(whole, key=lambda slots: (len(slots), slots))
    decoders = dict(sorted(whole[slots].items()))
    return EngineSet(encoder, decoders, ShapePlan(slots, tuple(decoders), encoder.key.slots))


def _missing(
    bundle: Bundle, store: EngineStore, place: EngineTarget, precision: Precision
) -> DeviceError:
    """Says of the nearest engine why it does not do."""
    channels, longest = bundle.manifest.model.channels, bundle.manifest.decoding.max_tokens
    slots = (*SLOTS[:-1], SLOTS[-1] + channels - 1)
    plan = ShapePlan(slots, (*(c for c in CAPACITIES if c < longest), longest))
    command = build_command(bundle, precision, place.maker)
    digests = graph_digests(bundle, PROFILE, place.maker)
    for info in store.infos():  # whatever shapes it has
        key = info.key
        obstacles = key.obstacles(place) if key.maker == place.maker else []
        if obstacles and (key.export_id, key.graph, key.recipe, key.precision) == (
            bundle.manifest.export_id, digests[key.role], RECIPE, precision
        ):  # fmt: skip
            why = "; ".join(obstacles)
            return DeviceError(
                f"The {key.role} engine {info.path.name} cannot be used here: {why}. Build it "
                f"with: {command}"
            )
    targets = MAKERS[place.maker].targets
    for key in make_keys(bundle, plan, BuildOptions(precision), replace(place, targets=targets)):
        try:
            store.find(key, place, command=command)
        except DeviceError as error:
            return error
    return DeviceError(  # all are there, but of different precision or slots
        f"The engines in {store.folder} do not go together. Build them again with: {command}"
    )
