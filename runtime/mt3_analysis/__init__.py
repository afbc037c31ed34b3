"""Hears what is played: instruments, genres, how well; from graphs and from transcriptions."""

from mt3_runtime.imports.lazy import forward

_HOMES = {
    "assessment.assessment_results": ("Assessment", "Comparison"),
    "assessment.performance": ("Performance",),
    "assessment.performance_assessment": ("assess", "compare"),
    "assessment_networks.network_session": ("AssessorNetworks", "open_assessor_networks"),
    "genres.genre_detection": ("detect_genre_hybrid", "genre"),
    "genres.genre_results": ("Genre",),
    "networks.classifier_session": ("Classifier", "open_classifier"),
    "tagging.instrument_tagging": ("load_tagger", "tag"),
    "tagging.tag_results": ("Tags",),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__ = forward(__name__, _HOMES)
