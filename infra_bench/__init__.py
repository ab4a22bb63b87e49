"""Measure implementations against their peers, verify them while measuring, record and draw.

Knows nothing of what it measures: a benchmark hands it functions, inputs and a float64 reference.
"""

from ._need import need

need("numpy", "rich")  # before the modules below, so that a missing one is one line, no traceback

from ._version import __version__  # noqa: E402
from .case import Case, Implementation, Row  # noqa: E402
from .record import CaseRecord, Measurement, Record, RecordError  # noqa: E402
from .run import Run  # noqa: E402

__all__ = [
    "Case",
    "CaseRecord",
    "Implementation",
    "Measurement",
    "Record",
    "RecordError",
    "Row",
    "Run",
    "__version__",
]
