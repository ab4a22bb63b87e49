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
import sys
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
SWITCH_INTERVAL = 0.0005  # seconds


@dataclass(eq=False)
class _Mailbox:
    """Where the engine's thread delivers one request's outputs.

    `unfinished` holds the indices of its answers that have not ended; only that thread uses it.
    """

    request_id: str
    num_prompt_tokens: int
    loop: asyncio.AbstractEventLoop
    unfinished: set[int]
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

    The pieces of a request's n answers come mixed; `Output.index` tells them apart.

    Leaving it early (`aclose`, `async with`, a cancelled task, or just dropping it) aborts the
    request and frees its blocks.
    """

    def __init__(self, owner: EngineThread, mailbox: _Mailbox) -> None:
        self.request_id = mailbox.request_id
        self._owner = owner
        self._outputs = mailbox.outputs
        self._num_unfinished = len(mailbox.unfinished)

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        if not self._num_unfinished:
            raise StopAsyncIteration
        try:
            output = await self._outputs.get()
        except BaseException:  # cancelled: nobody will read the rest
            self._leave()
            raise
        self._num_unfinished -= output.finish_reason is not None
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
        if self._num_unfinished:
            self._num_unfinished = 0
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
        # The model's operators let go of the interpreter's lock and take it back hundreds of times
        # a step. A thread that holds it is asked to give way only after this interval: with
        # Python's 5 ms, a busy event loop would hold up every step several times as long.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
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
        mailbox = _Mailbox(
            request_id, len(prompt_token_ids), asyncio.get_running_loop(), set(range(params.n))
        )
        self._mailboxes[request_id] = mailbox
        # Only now: a thread that ends after this look delivers an error to the mailbox, one that
        # ended before is seen here. So no request is left without an answer.
        if not self.healthy:
            self._mailboxes.pop(request_id, None)
            raise EngineDead(f"the engine does not run: {self._why_ended}")
        stream = OutputStream(self, mailbox)  # now: from the put on, the mailbox is the thread's
        self._num_submitted += 1
        self._inbox.put(_Add(request_id, tuple(prompt_token_ids), params))
        return stream

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
                self._deliver(outputs)
        except BaseException as error:
            log.exception("the engine's thread has died")
            reason, why = "error", f"it died of {error!r}"
        self._why_ended = why
        for mailbox in list(self._mailboxes.values()):
            self._end(mailbox, reason, f"the engine ended: {why}" if reason == "error" else "")

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
                # generate() has found a place in the queue for it, and told the client so.
                self._engine.add(
                    command.request_id, command.prompt_token_ids, command.params, has_place=True
                )
            except ValueError as error:  # it came to be refused since generate()
                mailbox = self._mailboxes.get(command.request_id)
                if mailbox is not None:
                    self._end(mailbox, "error", str(error))

    def _publish(self) -> None:
        self._snapshot = (self._num_taken, self._engine.stats())

    def _end(self, mailbox: _Mailbox, reason: FinishReason, error: str) -> None:
        """Tell a request that nothing more comes for its unfinished answers."""
        name, prompt = mailbox.request_id, mailbox.num_prompt_tokens
        self._deliver(
            [
                Output(name, None, "", reason, prompt, 0, error, index=index)
                for index in sorted(mailbox.unfinished)
            ]
        )

    def _deliver(self, outputs: Sequence[Output]) -> None:
        """Hand outputs to their event loops, waking each of them once for all."""
        for_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Mailbox, Output]]] = {}
        for output in outputs:
            mailbox = self._mailboxes.get(output.request_id)
            if mailbox is None:  # dropped; its abort is on the way
                continue
            if output.finish_reason is not None:
                mailbox.unfinished.discard(output.index)
                if not mailbox.unfinished:
                    self._mailboxes.pop(output.request_id, None)
            for_loop.setdefault(mailbox.loop, []).append((mailbox, output))
        for loop, pieces in for_loop.items():
            try:
                loop.call_soon_threadsafe(_put, pieces)
            except RuntimeError:  # the event loop is closed: nobody can read them any more
                for mailbox, _ in pieces:
                    self._drop(mailbox.request_id)


def _put(pieces: Sequence[tuple[_Mailbox, Output]]) -> None:
    for mailbox, output in pieces:
        mailbox.outputs.put_nowait(output)
