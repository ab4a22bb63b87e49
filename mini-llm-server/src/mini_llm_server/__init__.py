"""A small LLM server: continuous batching over a paged KV cache behind an OpenAI-compatible API.

The library half of it works without HTTP::

    from mini_llm_server import LLM, SamplingParams
    llm = LLM("smollm2")
    print(llm.generate(["The capital of France is"], SamplingParams(temperature=0))[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mini_llm_server.engine.request import Output, QueueFull, RequestTooLarge, SamplingParams

if TYPE_CHECKING:
    from mini_llm_server.llm import LLM, Completion

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
