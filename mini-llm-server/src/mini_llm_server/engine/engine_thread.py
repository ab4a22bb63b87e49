"""Runs an engine in a thread of its own, and streams its outputs to asyncio.

The two sides share no lock: commands go in by a queue, outputs come back by
`call_soon_threadsafe`, and statistics are one immutable snapshot that is replaced after each
step. So the event loop never waits for the model.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from mini_llm_server.engine.request import (
    EngineDead,
    FinishReason,
    Output,
    QueueFull,
    SamplingParams,
)

if TYPE_CHECKING:
    from mini_llm_server.engine.engine import Engine, EngineStats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Mailbox:
    """Where the engine's thread delivers one request's outputs."""

    request_id: str
    num_prompt_tokens: int
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Output] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class _Add:
    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True)
class _Abort:
    request_id: str


class OutputStream:
    """The outputs of one request: an asynchronous iterator that ends after the last piece.

    Leaving it early (`aclose`, `async with`, a cancelled task, or just dropping it) aborts the
    request and frees its blocks.
    """

    def __init__(self, owner: EngineThread, mailbox: _Mailbox) -> None:
        self.request_id = mailbox.request_id
        self._owner = owner
        self._outputs = mailbox.outputs
        self._ended = False

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        try:
            output = await self._outputs.get()
        except BaseException:  # cancelled: nobody will read the rest
            self._leave()
            raise
        self._ended = output.finish_reason is not None
        return output

    async def __aenter__(self) -> OutputStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def __del__(self) -> None:
        self._leave()

    async def aclose(self) -> None:
        """Abort the request unless it has ended."""
        self._leave()

    def _leave(self) -> None:
        if not self._ended:
            self._ended = True
            self._owner._drop(self.request_id)


class EngineThread:
    """Owns an engine; nothing else may touch it between `start` and `stop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # SimpleQueue because its put is reentrant: a dropped OutputStream calls it from __del__,
        # which the garbage collector may run at any moment in any thread.
        self._inbox: queue.SimpleQueue[_Add | _Abort | None] = queue.SimpleQueue()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._ids = itertools.count()
        self._num_submitted = 0
        self._num_taken = 0
        self._snapshot = (0, engine.stats())  # (requests taken from the inbox, statistics then)
        self._why_ended = "it was not started"

    @property
    def healthy(self) -> bool:
        """Whether requests are being served."""
        return not self._why_ended

    def start(self) -> None:
        """Start serving. An EngineThread serves once: after `stop`, make a new one."""
        self._why_ended = ""
        self._thread.start()

    def stop(self) -> None:
        """End after the step in progress; what is unfinished gets an "abort" output."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    def stats(self) -> EngineStats:
        """Return the engine's statistics as of its last step."""
        return self._snapshot[1]

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
    ) -> OutputStream:
        """Submit a request and return its outputs. Call it from a running event loop.

        A refusal is raised here and now, before anything was sent to a client.

        Raises:
            EngineDead: the engine does not run (any more).
            QueueFull: max_waiting requests wait already.
            RequestTooLarge, ValueError: see `Engine.check`; also for an id that is in use.
        """
        self._engine.check(prompt_token_ids, params)
        if request_id is None:
            request_id = f"request-{next(self._ids)}"
        if request_id in self._mailboxes:
            raise ValueError(f"request id {request_id!r} is in use: choose another")
        num_taken, stats = self._snapshot
        limit = self._engine.config.max_waiting
        if stats.waiting + self._num_submitted - num_taken >= limit:
            raise QueueFull(f"{limit} requests wait already: try again later")
        mailbox = _Mailbox(request_id, len(prompt_token_ids), asyncio.get_running_loop())
        self._mailboxes[request_id] = mailbox
        # Only now: a thread that ends after this look delivers an error to the mailbox, one that
        # ended before is seen here. So no request is left without an answer.
        if not self.healthy:
            self._mailboxes.pop(request_id, None)
            raise EngineDead(f"the engine does not run: {self._why_ended}")
        self._num_submitted += 1
        self._inbox.put(_Add(request_id, tuple(prompt_token_ids), params))
        return OutputStream(self, mailbox)

    def _drop(self, request_id: str) -> None:
        if self._mailboxes.pop(request_id, None) is not None:
            self._inbox.put(_Abort(request_id))

    def _run(self) -> None:
        reason: FinishReason = "abort"
        why = "it was stopped"
        try:
            while self._take_commands():
                self._publish()
                outputs = self._engine.step()
                self._publish()  # first: who reads an output may then look at the statistics
                for output in outputs:
                    self._deliver(output)
        except BaseException as error:
            log.exception("the engine's thread has died")
            reason, why = "error", f"it died of {error!r}"
        self._why_ended = why
        for mailbox in list(self._mailboxes.values()):
            text = f"the engine ended: {why}" if reason == "error" else ""
            prompt = mailbox.num_prompt_tokens
            self._deliver(Output(mailbox.request_id, None, "", reason, prompt, 0, text))

    def _take_commands(self) -> bool:
        """Carry out what is in the inbox, waiting for it while there is no work; False to stop."""
        while True:
            try:
                command = self._inbox.get(block=not self._engine.has_work())
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, _Abort):
                self._engine.abort(command.request_id)
                self._publish()
                continue
            self._num_taken += 1
            try:
                self._engine.add(command.request_id, command.prompt_token_ids, command.params)
            except (ValueError, QueueFull) as error:  # it came to be refused since generate()
                prompt = len(command.prompt_token_ids)
                self._deliver(Output(command.request_id, None, "", "error", prompt, 0, str(error)))

    def _publish(self) -> None:
        self._snapshot = (self._num_taken, self._engine.stats())

    def _deliver(self, output: Output) -> None:
        mailbox = self._mailboxes.get(output.request_id)
        if mailbox is None:  # dropped; its abort is on the way
            return
        if output.finish_reason is not None:
            self._mailboxes.pop(output.request_id, None)
        try:
            mailbox.loop.call_soon_threadsafe(mailbox.outputs.put_nowait, output)
        except RuntimeError:  # the event loop is closed: nobody can read it any more
            self._drop(output.request_id)
