"""Finds taggers and genre classifiers by name: `<cache>/classifiers/<name>[.mt3]`, or by path.

Contract: a name means the same bundle everywhere.  None may be installed, which is no error until
one is asked for: what is heard then comes from the transcription alone.
"""

from __future__ import annotations

import os

from mt3_runtime.bundles.classifier import ClassifierBundle, Kind
from mt3_runtime.errors import BundleError, BundleNotFoundError, OptionError
from mt3_runtime.models.cache import expanded
from mt3_runtime.models.installed import installed_classifiers

#: What to do about a missing one, by kind.
ADVICE: dict[Kind, str] = {
    "tagger": "Install one with `mt3 models pull yamnet` and `mt3 export yamnet`, or export an AST "
    "folder; docs/tagging.md says where they are published.",
    "genre": "Install one with `mt3 export FOLDER` of a HuBERT or Wav2Vec2 genre classifier; "
    "docs/tagging.md says where they are published.",
}


def find_installed(
    kind: Kind, name: str | os.PathLike[str] | None = None
) -> ClassifierBundle | None:
    """The bundle of a kind that is meant, or None if none is installed and none is named.

    Args:
        kind: ``tagger`` or ``genre``.
        name: Of an installed bundle, or a path.

    Raises:
        BundleNotFoundError: There is none of this name.
        BundleError: It is damaged, or of another kind.
        OptionError: None is named, and several are installed.
    """
    known = installed_classifiers()
    if name is not None:
        text = os.fspath(name)
        path = known.get(text) or expanded(text)
        if not text or not os.path.lexists(path):
            listed = ", ".join(known) or "none"
            raise BundleNotFoundError(
                f"There is no bundle {text!r} of kind {kind} (installed: {listed}). {ADVICE[kind]}"
            )
        bundle = ClassifierBundle(path)
        if bundle.manifest.kind != kind:
            raise BundleError(
                f"{path} is of kind {bundle.manifest.kind}, and one of kind {kind} is needed. "
                f"{ADVICE[kind]}"
            )
        return bundle
    fitting = {}
    for label, path in known.items():
        bundle = ClassifierBundle(path)
        if bundle.manifest.kind == kind:
            fitting[label] = bundle
    if len(fitting) > 1:
        raise OptionError(
            f"Several bundles of kind {kind} are installed ({', '.join(fitting)}); name one."
        )
    return next(iter(fitting.values()), None)
