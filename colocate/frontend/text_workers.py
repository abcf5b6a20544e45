"""Threads for work on text that may take long: tokenizing, untrusted templates, large answers.

Each piece of work has a time limit. Python offers no way to stop a thread from outside except an asynchronous
exception, which ends any loop of Python code (a template's); native code (the tokenizer) runs on to its end unobserved.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from colocate.errors import RequestError

T = TypeVar("T")


class _OutOfTime(BaseException):
    """Raised inside a worker thread whose time is up. Not an Exception: the work must not swallow it."""


class _Work(Generic[T]):
    """One run of a function that can be interrupted while, and only while, it runs."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._thread_id: int | None = None
        self._interrupted = False

    def run(self) -> T:
        try:
            with self._lock:
                if self._interrupted:
                    raise _OutOfTime
                self._thread_id = threading.get_ident()
            try:
                return self._function()
            finally:
                self._leave()
        except _OutOfTime:
            raise TimeoutError from None

    def _leave(self) -> None:
        with self._lock:
            self._thread_id = None
            interrupted = self._interrupted
        give_up_s = time.monotonic() + 1.0
        # the exception is on its way: take it here, not in the next work of this thread
        while interrupted and time.monotonic() < give_up_s:
            time.sleep(0)

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._thread_id is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread_id), ctypes.py_object(_OutOfTime)
                )


class TextWorkers:
    """A small pool. Not more threads than cores are worth it: native tokenizing is parallel already."""

    def __init__(self, num_threads: int = 2, limit_s: float = 10.0) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="text")
        self._limit_s = limit_s

    async def run(self, function: Callable[[], T], param: str) -> T:
        """Raises RequestError (400, naming `param`) when the time limit passes, queueing included."""
        work = _Work(function)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work.run)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._limit_s)
        except TimeoutError:
            work.interrupt()
            future.add_done_callback(_retrieve)
            message = f"the work on {param} took longer than {self._limit_s:g} s"
            raise RequestError(message, param=param, code="too_slow") from None
        except asyncio.CancelledError:
            work.interrupt()
            future.add_done_callback(_retrieve)
            raise

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _retrieve(future: asyncio.Future[T]) -> None:
    """Nobody waits any more: an exception that is never looked at would be reported as lost."""
    if not future.cancelled():
        future.exception()
