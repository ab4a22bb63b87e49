"""Compiles the C++ and CUDA kernels, once for a machine, and loads them: by being imported.

A machine without a C++ compiler gets a warning and computes with torch's operators alone.

Raises:
    RuntimeError: there is a compiler, and it failed; the message carries its output.
"""

from __future__ import annotations

from mini_llm_server import _build

is_available = _build.build().module is not None
