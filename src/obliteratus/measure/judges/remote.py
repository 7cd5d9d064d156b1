"""A judge's questions to an OpenAI-compatible address, several at once, beside other work."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import track
from obliteratus.settings import JudgeSettings

Reply = Future[str | None]


class Remote:
    """Asks a model at ``settings.url``, at most ``settings.at_once`` questions at a time.

    What :meth:`begin` was given is asked while its caller goes on. The threads that ask are
    daemons, so a program that ends does not wait for replies that nobody reads.
    """

    def __init__(self, settings: JudgeSettings, reply_tokens: int) -> None:
        """Nothing is sent before the first question.

        Raises:
            UsageError: openai is not installed.
        """
        try:
            from openai import OpenAI
        except ImportError as error:
            raise UsageError(
                "a judge at an address needs the package openai: pip install 'obliteratus[judge]'."
            ) from error
        key = os.environ.get(settings.key_variable)
        # Servers of one's own mostly want no key, and the client wants one.
        self._client = OpenAI(
            base_url=settings.url,
            api_key=key or "none",
            timeout=settings.timeout,
            max_retries=settings.retries,
        )
        self._settings, self._reply_tokens = settings, reply_tokens
        self._begun: dict[str, Reply] = {}
        self._queue: SimpleQueue[tuple[str, Reply]] = SimpleQueue()
        self._threads: list[Thread] = []
        self.identity: dict[str, Any] = {"model": settings.model, "url": settings.url}

    def begin(self, question: str) -> None:
        """Ask ``question`` soon; its reply waits for :meth:`__call__`.

        Raises:
            MeasurementError: one that was begun before it has failed.
        """
        for reply in self._begun.values():
            if reply.done():
                self._result(reply)
        self._reply(question)

    def __call__(self, questions: Sequence[str]) -> Iterator[str | None]:
        """Yield a reply to each, in order; None where the server was too slow, busy or failing.

        Raises:
            MeasurementError: nobody answers there, or a request is refused.
        """
        replies = map(self._result, [self._reply(question) for question in questions])
        yield from track(replies, task="judge answers", total=len(questions), unit="answers")
        for question in set(questions):
            del self._begun[question]  # whoever asks again wants another reply

    def _reply(self, question: str) -> Reply:
        """Return the reply that is under way, or put the question into the queue."""
        if question in self._begun:
            return self._begun[question]
        if not self._threads:
            self._threads = [
                Thread(target=self._work, daemon=True) for _ in range(self._settings.at_once)
            ]
            for thread in self._threads:
                thread.start()
        reply = self._begun[question] = Reply()
        self._queue.put((question, reply))
        return reply

    def _result(self, reply: Reply) -> str | None:
        """Return a reply; where it failed, forget what else was begun."""
        try:
            return reply.result()
        except MeasurementError:
            self._begun.clear()
            raise

    def _work(self) -> None:
        while True:
            question, reply = self._queue.get()
            try:
                reply.set_result(self._one(question))
            except Exception as error:  # noqa: BLE001 - whoever reads the reply raises it
                reply.set_exception(error)
                self._fail_waiting(error)

    def _fail_waiting(self, error: Exception) -> None:
        """Give what waits the same error: a server that refuses one request gets no more."""
        while True:
            try:
                _, reply = self._queue.get_nowait()
            except Empty:
                return
            reply.set_exception(error)

    def _one(self, question: str) -> str | None:
        import openai

        assert self._settings.model is not None
        try:
            reply = self._client.chat.completions.create(
                model=self._settings.model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=self._reply_tokens,
                response_format={"type": "json_object"},
            )
        except (openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError):
            return None
        except openai.APIConnectionError as error:
            raise MeasurementError(
                f"nobody answers at {self._settings.url} ({error.__cause__ or error}). Start the "
                "judge's server, or correct verify.judge.url."
            ) from error
        except openai.APIStatusError as error:
            raise MeasurementError(
                f"{self._settings.url} refuses the request with status {error.status_code}: "
                f"{error.message} Check verify.judge.model and the key in "
                f"{self._settings.key_variable}."
            ) from error
        return reply.choices[0].message.content if reply.choices else None
