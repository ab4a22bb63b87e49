"""Show what is being measured: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

REDRAW_S = 0.1


def make_console() -> Console:
    """Return a console that wraps for its terminal, and not at 80 columns in a file or pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=160, soft_wrap=True)


class Progress:
    """The live line. It is redrawn between samples and never by a thread, which would be timed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.drawn = 0.0

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def show(self, case: str, implementation: str, doing: str, turn: int | None = None) -> None:
        """Say what happens now."""
        now = time.monotonic()
        if not self.console.is_terminal or now - self.drawn < REDRAW_S:
            return
        self.drawn = now
        count = f" round {turn + 1}" if turn is not None else ""
        text = Text(f"{case}  {implementation}  {doing}{count}", no_wrap=True, style="dim")
        self.live.update(text, refresh=True)
