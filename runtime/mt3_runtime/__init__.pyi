from mt3_runtime.errors import MT3Error as MT3Error
from mt3_runtime.loading import clear_cache as clear_cache
from mt3_runtime.loading import load_model as load_model
from mt3_runtime.loading import transcribe as transcribe
from mt3_runtime.model import Model as Model
from mt3_runtime.models.catalogue import download_model as download_model
from mt3_runtime.models.catalogue import get_model_info as get_model_info
from mt3_runtime.models.catalogue import list_models as list_models
from mt3_runtime.notes.note import Note as Note
from mt3_runtime.transcription import Progress as Progress
from mt3_runtime.transcription import Transcription as Transcription

__all__ = [
    "MT3Error",
    "Model",
    "Note",
    "Progress",
    "Transcription",
    "clear_cache",
    "download_model",
    "get_model_info",
    "list_models",
    "load_model",
    "transcribe",
]
__version__: str
