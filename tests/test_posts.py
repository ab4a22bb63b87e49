"""The posts' Python blocks run, in order, in one interpreter each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

POSTS = sorted((Path(__file__).resolve().parents[1] / "docs/posts").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.S | re.M)
SNIPPET = re.compile(r"<!-- bench:snippet .*?<!-- /bench -->", re.S)  # source code, cut from files


@pytest.mark.parametrize("post", POSTS, ids=lambda path: path.stem)
def test_python_blocks_run(post: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(SNIPPET.sub("", post.read_text(encoding="utf-8")))
    assert blocks, f"{post} has no Python block"
    script = tmp_path / "blocks.py"
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
