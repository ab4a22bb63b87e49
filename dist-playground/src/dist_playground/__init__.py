"""Train a small GPT by data, sharded-data or tensor parallelism, and get one process's numbers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dist-playground")
except PackageNotFoundError:  # used from a checkout through PYTHONPATH
    __version__ = "unknown"

__all__ = ["__version__"]
