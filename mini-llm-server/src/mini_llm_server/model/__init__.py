"""Models: weights, tokenizer and chat template behind one name."""

from mini_llm_server.model.loader import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
