"""Finds bundles by name: `<cache>/bundles/<name>[.mt3]`, or in the package.

Contract: `resolve_model` is what every command and `load_model` go through, so a name means the
same bundle everywhere.  A cache folder that is unknown (a user without a home) or cannot be looked
into is an error only to those who need something from it: what is in the package works without.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from mt3_runtime.arguments.argument_checks import as_path_text
from mt3_runtime.bundles.bundle import Bundle, quoted
from mt3_runtime.errors import BundleError, BundleNotFoundError, OptionError, OutputError
from mt3_runtime.filesystem.ownership import delete, is_regular, listed
from mt3_runtime.imports.extras import install
from mt3_runtime.models import catalogue
from mt3_runtime.models.cache import CLASSIFIER_FOLDER, cache_dir, contents, expanded
from mt3_runtime.models.download import part_of
from mt3_runtime.models.shipped import DEFAULT, shipped_models
from mt3_runtime.notes.stems import OTHER

log = logging.getLogger("mt3_runtime")

#: Model used where none is named: a name or a path.
MODEL_VARIABLE = "MT3_MODEL"

#: A bundle that is one file carries this suffix, as a folder it carries this file.
BUNDLE_SUFFIX = ".mt3"
BUNDLE_FILE = "bundle.json"


def installed_models() -> dict[str, Path]:
    """The bundles in the cache folder, by name.

    Raises:
        OptionError: The cache folder cannot be looked into.
    """
    found = filter(_is_bundle, contents(cache_dir() / "bundles"))
    return {path.name.removesuffix(BUNDLE_SUFFIX): path for path in found}


def find_model(name: str, *, aliases: bool = True) -> Path | None:
    """The installed or shipped bundle of this name or alias, or None.

    Args:
        name: What the user calls it.
        aliases: Whether the catalogue's other names count.

    Raises:
        OptionError: There is none in the package, and the cache folder cannot be looked into.
    """
    others = {alias: model.name for model in catalogue.list_models() for alias in model.aliases}
    names, shipped = (name, others.get(name, "") if aliases else ""), shipped_models()
    try:
        known = shipped | installed_models()
    except OptionError as error:
        known = shipped
        if not set(names) & set(known):
            raise
        _say_unread(error)
    return next((known[each] for each in names if each in known), None)


def resolve_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The bundle a user means.

    Args:
        model: A path, or the name of an installed bundle (an installed name wins over a file of
            that name here, which wins over an alias; write ``./name`` for the file).  None stands
            for ``MT3_MODEL``, else for the only installed bundle that is not made for one stem,
            else for `mt3_runtime.models.shipped`'s.

    Raises:
        BundleNotFoundError: There is no such bundle; the message says how to get one.
        OptionError: The model is given by name, and the cache folder cannot be looked into.
    """
    wanted = model if model is not None else os.environ.get(MODEL_VARIABLE) or None
    if wanted is None:
        return _only_installed()
    name = as_path_text("model", wanted, "a path or a name")
    if _looks_like_path(name):  # needs no cache folder
        path = expanded(name)
        if not _exists(path):
            raise BundleNotFoundError(
                f"There is no bundle at {name}. Make one with: mt3 export CHECKPOINT -o {name}"
            )
        return path.absolute()  # "name" alone, as Path leaves of "./name", would be a name again
    here = Path(name).absolute() if name and _exists(Path(name)) else None
    try:
        found = find_model(name, aliases=here is None or not _is_bundle(here)) or here
    except OptionError:  # a file that is here needs nothing of the cache folder
        if here is None:
            raise
        found = here
    if found is None:
        raise BundleNotFoundError(_not_installed(name))
    return found


def export_advice(bundle: Bundle, profile: str) -> str:
    """How to get a bundle's model with one more graph profile, as a sentence with the command.

    The result goes into the cache folder, where one may write, and is found there by name; where
    that folder is unknown or somebody else's, into the working directory.
    """
    manifest = bundle.manifest
    if not manifest.precision.exact:
        return (
            f"It is of precision {manifest.precision}; make it again from an exact bundle that has "
            f"the profile {profile}."
        )
    try:
        installed, place = installed_models(), str(cache_dir() / "bundles")
    except OptionError:
        installed, place = {}, ""
    known = shipped_models() | installed
    names = [name for name, path in known.items() if path == bundle.path]
    name = names[0] if names else manifest.name
    command = f"mt3 export {quoted(Path(name) if names else bundle.path)} "
    command += f"--profiles {','.join([*bundle.profiles, profile])}"
    taken = installed.get(name, bundle.path) != bundle.path  # another one of this name stays there
    if taken or not place or not is_plain(name):
        name = f"{name if is_plain(name) else 'exported'}-{profile}"
        command += f" -o {quoted(Path(place, name))}"
        name = name if place else f"./{name}"
    if importlib.util.find_spec("onnx") is None:
        command = f"{install('export')} && {command}"
    again = "" if names and " -o " not in command else f", and use the model {name}"
    return f"Make them once with: {command}{again}"


def is_plain(name: str) -> bool:
    """Whether a name that a bundle gives itself may become that of a file."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None and ".." not in name


def installed_classifiers() -> dict[str, Path]:
    """Taggers and genre classifiers in the cache folder, by name; none without a home folder.

    Raises:
        OptionError: The cache folder cannot be looked into.
    """
    try:
        folder = cache_dir() / CLASSIFIER_FOLDER
    except OptionError:
        return {}
    found = [
        path
        for path in contents(folder)
        if (path.is_file() and path.suffix == BUNDLE_SUFFIX) or (path / BUNDLE_FILE).is_file()
    ]
    return {path.name.removesuffix(BUNDLE_SUFFIX): path for path in found}


def remove_model(name: str) -> int:
    """Deletes the checkpoint and the bundle stored under a name; returns the bytes freed.

    Of a checkpoint these are the files that the catalogue names, of a bundle those that its
    manifest names.

    Raises:
        OptionError: The cache folder is unknown or cannot be looked into.
        OutputError: Something else is with them, which the message names; nothing is deleted.
    """
    for kind in ("checkpoints", "bundles", CLASSIFIER_FOLDER):
        contents(cache_dir() / kind)  # or what is there would be said not to be
    aliases = {alias: model.name for model in catalogue.list_models() for alias in model.aliases}
    files: list[Path] = []
    folders: list[Path] = []
    for wanted in dict.fromkeys((name, aliases.get(name, name))):
        if wanted in ("", ".", "..") or wanted != Path(wanted).name:
            continue
        for place in (
            cache_dir() / "checkpoints" / wanted,
            cache_dir() / "bundles" / wanted,
            cache_dir() / "bundles" / f"{wanted}{BUNDLE_SUFFIX}",
            cache_dir() / CLASSIFIER_FOLDER / wanted,
            cache_dir() / CLASSIFIER_FOLDER / f"{wanted}{BUNDLE_SUFFIX}",
        ):
            if not os.path.lexists(place):
                continue
            check = _checkpoint_files if place.parent.name == "checkpoints" else _bundle_files
            files += check(place)
            folders += [place] if place.is_dir() else []
    freed = delete(files)
    for folder in folders:
        _remove_empty(folder)
    return freed


def _bundle_files(place: Path) -> list[Path]:
    from mt3_runtime.bundles.bundle_ownership import bundle_files  # noqa: PLC0415  NumPy; `mt3 models` has none

    _refuse_link(place)
    if place.is_dir() and not any(place.iterdir()):
        return []
    try:
        return bundle_files(place, unchanged=False)
    except OutputError as error:
        raise OutputError(f"{error} Nothing is deleted; see what it is, and delete it.") from error


def _checkpoint_files(place: Path) -> list[Path]:
    """The files of a pulled checkpoint, and what a broken transfer left."""
    _refuse_link(place)
    try:
        named = [place / file.path for file in catalogue.get_model_info(place.name).files]
    except OptionError:
        named = []
    own = {path for file in named for path in (file, part_of(file))}
    above = {folder for path in own for folder in path.parents}
    there = sorted(place.rglob("*")) if place.is_dir() else [place]
    foreign = [
        path.relative_to(place.parent)
        for path in there
        if not (is_regular(path) if path in own else path in above and not path.is_symlink())
    ]
    if foreign:
        raise OutputError(
            f"{place} also holds {listed(foreign)}, which the catalogue does not name. Nothing is "
            "deleted; move that elsewhere first."
        )
    return [path for path in there if path in own]


def _refuse_link(place: Path) -> None:
    if place.is_symlink():
        raise OutputError(f"{place} is a link that mt3 did not make; delete it yourself.")


def _remove_empty(folder: Path) -> None:
    """Removes a folder with the folders in it; what came in meanwhile stays."""
    for path in sorted((folder, *folder.rglob("*")), reverse=True):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()


def _is_bundle(path: Path) -> bool:
    try:
        return path.suffix == BUNDLE_SUFFIX if path.is_file() else (path / BUNDLE_FILE).is_file()
    except OSError:  # somebody else's: whoever names it is told so when it is read
        return True


def _say_unread(error: OptionError) -> None:
    """Logs that bundles which may be there were not looked for; where is no home there are none."""
    level = logging.WARNING if isinstance(error.__cause__, OSError) else logging.INFO
    log.log(level, "Using the model that comes with the package. %s", error)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission to look, a name that is too long
        raise BundleNotFoundError(f"{path} cannot be looked at: {error.strerror}.") from error


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "~")) or os.sep in name or "/" in name or name.endswith(BUNDLE_SUFFIX)
    )


def _only_installed() -> Path:
    shipped = shipped_models().get(DEFAULT)
    try:
        installed = installed_models()
    except OptionError as error:
        if shipped is None:
            raise
        _say_unread(error)
        return shipped
    installed = {name: path for name, path in installed.items() if not _is_specialist(path)}
    if shipped is not None and len(installed) > 1:
        installed.pop(DEFAULT, None)  # stands in for the shipped one, and has its rank
    if len(installed) == 1:
        return next(iter(installed.values()))
    if installed:
        raise BundleNotFoundError(
            f"Several models are installed ({', '.join(installed)}). Choose one with --model NAME "
            f"or with the environment variable {MODEL_VARIABLE}."
        )
    if shipped is not None:
        return shipped
    raise BundleNotFoundError(
        f"No model is named and none is installed in {cache_dir() / 'bundles'}. Make one with "
        "`mt3 models pull magenta_mt3` and `mt3 export magenta_mt3`, or name a bundle with "
        f"--model PATH or the environment variable {MODEL_VARIABLE}."
    )


def _is_specialist(path: Path) -> bool:
    """Whether a bundle is made for one stem: for whole songs it is only used by name."""
    try:
        return Bundle(path).manifest.stem != OTHER
    except BundleError:
        return False  # who means this one is told what is wrong with it


def _not_installed(name: str) -> str:
    try:
        model = catalogue.get_model_info(name)
    except OptionError:
        installed = ", ".join(installed_models()) or "none"
        return (
            f"There is no bundle and no installed model {name!r} (installed: {installed}). "
            "`mt3 models` lists what is known."
        )
    if not model.supported:
        return f"The model {model.name} is known, but this version cannot export it yet."
    return (
        f"The model {model.name} is not installed. Make it with `mt3 models pull {model.name}` "
        f"and `mt3 export {model.name}`."
    )
