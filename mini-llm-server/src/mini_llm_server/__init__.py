"""A small LLM server: continuous batching over a paged KV cache behind an OpenAI-compatible API.

The library half of it works without HTTP::

    from mini_llm_server import LLM, SamplingParams
    llm = LLM("smollm2")
    print(llm.generate(["The capital of France is"], SamplingParams(temperature=0))[0].text)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mini_llm_server.engine.request import Output, QueueFull, RequestTooLarge, SamplingParams

if TYPE_CHECKING:
    from mini_llm_server.llm import LLM, Completion

# OpenMP's idle threads otherwise spin on their cores between operators. Where the model's threads
# share the cores with anything else (the HTTP side, a client on the same laptop), a spinning thread
# takes the time of the one it waits for, and steps become ten times slower. OpenMP reads this when
# torch is imported, so it must be set first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# oneDNN compiles a kernel for each number of rows that a matrix product ever has, and keeps the
# last 1024 of each of its two caches. A batch has hundreds of sizes, so a server would grow by some
# 200 MiB in its first hours. One more compilation takes less than a millisecond.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "128")

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Completion",
    "Output",
    "QueueFull",
    "RequestTooLarge",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    """Import LLM only when it is asked for: it brings torch, which `--help` can do without."""
    if name in ("LLM", "Completion"):
        from mini_llm_server import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
