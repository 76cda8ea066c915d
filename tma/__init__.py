"""Order fine-tuning data for a test set, train in exactly that order, measure what it changes."""

from tma.arrange import arrange, test_centric_rounds
from tma.config import RunConfig, StudyConfig, study_settings
from tma.data import load
from tma.embed import embed
from tma.errors import TmaError
from tma.runs import Run, run

__version__ = "0.1.0"

__all__ = [
    "Run",
    "RunConfig",
    "StudyConfig",
    "TmaError",
    "arrange",
    "embed",
    "load",
    "run",
    "study_settings",
    "test_centric_rounds",
]
