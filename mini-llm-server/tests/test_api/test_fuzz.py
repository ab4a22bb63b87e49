"""Schemathesis over the OpenAPI document: what it makes up, right and wrong, is never a 5xx."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest


def schemathesis(live: Any, folder: Path, examples: int, seed: int) -> int:
    """Run all of its checks but one; return how many requests it made.

    The one left out wants every body that the schema allows to be accepted: fields that contradict
    each other, as echo and logprobs do, cannot be said in a schema.
    """
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", live.url + "/openapi.json",
         "--checks", "all", "--exclude-checks", "positive_data_acceptance",
         "--phases", "examples,coverage,fuzzing,stateful", "--no-color",
         "--max-examples", str(examples), "--seed", str(seed)],
        capture_output=True, text=True, timeout=500, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) generated", done.stdout)
    assert found
    return int(found[1])


@pytest.mark.parametrize(
    ("examples", "seed"),
    [(5, 0), pytest.param(300, 1, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(600)
def test_no_5xx(start: Any, tmp_path: Path, examples: int, seed: int) -> None:
    with start(max_model_len=96) as live:
        assert schemathesis(live, tmp_path, examples, seed) > 100
        stats = live.wait_until_idle()
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total
        assert stats.output_tokens > 50  # some of it was right and was answered
        assert httpx.get(live.url + "/health").status_code == 200
        assert live.complete("after", max_tokens=3)["usage"]["completion_tokens"] == 3
        codes = re.findall(r'status="5\d\d"', httpx.get(live.url + "/metrics").text)
        assert not codes
