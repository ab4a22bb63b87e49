"""A conversation in the terminal, with the engine in this process and no HTTP."""

from __future__ import annotations

from collections.abc import Callable

from mini_llm_server.engine.engine import Engine
from mini_llm_server.engine.request import SamplingParams
from mini_llm_server.model.tokenizer import Message

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


class Conversation:
    """The turns so far, and the engine that answers the next one.

    Args:
        write: is handed each piece of an answer as it comes.
        max_tokens: most tokens of an answer; None leaves it all the room there is.
    """

    def __init__(
        self,
        engine: Engine,
        write: Callable[[str], None],
        *,
        system: str | None = None,
        temperature: float = 0.7,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> None:
        self._engine = engine
        self._write = write
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._seed = seed
        self._start: list[Message] = [{"role": "system", "content": system}] if system else []
        self._turns = 0
        self.messages: list[Message] = [*self._start]

    def reset(self) -> None:
        """Forget all turns."""
        self.messages = [*self._start]

    def ask(self, text: str) -> str:
        """Write the answer as it comes, remember both turns, and return the answer.

        An interrupt (Ctrl-C) ends the answer there, and what there is of it is remembered.

        Raises:
            ValueError: the conversation is too long, or the model takes none; nothing is
                remembered then.
        """
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt = self._engine.loaded.tokenizer.apply_chat_template(messages)
        room = max(1, self._engine.max_model_len - len(prompt))
        params = SamplingParams(
            max_tokens=min(self._max_tokens or room, room),
            temperature=self._temperature,
            seed=self._seed,
        )
        self._turns += 1
        request_id = f"turn-{self._turns}"
        self._engine.add(request_id, prompt, params)
        answer = ""
        try:
            while self._engine.has_work():
                for output in self._engine.step():
                    answer += output.text
                    self._write(output.text)
        except KeyboardInterrupt:
            self._engine.abort(request_id)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer


def talk(conversation: Conversation, read: Callable[[], str], say: Callable[[str], None]) -> None:
    """Ask what `read` returns, line by line, until it raises EOFError.

    Args:
        say: is handed whole lines that are no answers.
    """
    say(HELP)
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
            say("(forgotten)")
        elif line.startswith("/"):
            say(HELP)
        elif line:
            try:
                conversation.ask(line)
            except ValueError as error:
                say(f"{error} (/reset starts anew)")
            say("")
