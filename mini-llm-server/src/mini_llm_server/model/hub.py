"""Fetches a model's folder from the Hugging Face hub, or finds it where it was fetched before."""

from __future__ import annotations

from pathlib import Path

# No *.bin and no *.py: nothing that could run as code is even fetched.
FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
         "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]  # fmt: skip


def download(name: str) -> Path:
    """Return the local folder of the model "ORGANISATION/NAME".

    Raises:
        FileNotFoundError: there is none, or the hub cannot be reached and it was not fetched
            before; says why.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{name} is no folder here and could not be fetched from the Hugging Face hub ({why})"
        ) from error
