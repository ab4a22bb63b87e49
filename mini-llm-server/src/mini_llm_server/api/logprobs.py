"""Log-probabilities in OpenAI's two formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mini_llm_server.engine.request import TokenLogprobs
from mini_llm_server.model.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot spell


def chat_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return /v1/chat/completions' object: one entry for each token."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token_id)
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(data) if data else None,  # a special token stands for none
        }

    return {
        "content": [
            {
                **entry(token.token_id, token.logprob),
                "top_logprobs": [entry(*each) for each in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(
    tokens: Sequence[TokenLogprobs], offset: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return /v1/completions' object: a list for each property.

    Args:
        offset: where in the answer's text the first token begins, in characters.
    """
    names = [_name(token.token_id, tokenizer) for token in tokens]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(tokenizer.token_bytes(token.token_id).decode(errors="ignore"))
    tops = [
        {
            _name(each, tokenizer): max(logprob, LEAST_LOGPROB)
            for each, logprob in (*token.top, (token.token_id, token.logprob))
        }
        for token in tokens
    ]
    return {
        "tokens": names,
        "token_logprobs": [max(token.logprob, LEAST_LOGPROB) for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _name(token_id: int, tokenizer: Tokenizer) -> str:
    """Return a token's text, or its bytes where they are no whole text: so no two are alike."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode() if data else tokenizer.token_text(token_id)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
