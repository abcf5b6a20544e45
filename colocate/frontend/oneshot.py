"""The client of `colocate generate`: takes the frontend's place, runs one prompt and prints its text as it comes."""

from __future__ import annotations

import os
import sys
import time
from http import HTTPStatus
from pathlib import Path

from msgspec import structs

from colocate.errors import ChannelClosed, ColocateError, ConfigError
from colocate.frontend.chat_template import ChatTemplate
from colocate.frontend.tokenizer import TextTokenizer, TokenizerFiles, load_tokenizer
from colocate.messages.client import OutputItem, Outputs, Rejected, Submit
from colocate.messages.control import ChildReady, EngineAt, Shutdown
from colocate.messages.sampling import SamplingParams
from colocate.messages.spec import OneShot, ProcessSpec
from colocate.model.config import load_model_config
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import Waiter
from colocate.transport.zmq_channel import connect_to_engine
from colocate.types import FinishReason, Role, TokenId

_BEAT_S = 0.1


def run_oneshot(spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    """Entry of the process. Returns when the text is complete; the supervisor then ends the rest."""
    assert spec.prompt is not None
    started_s = time.monotonic()
    model_dir = Path(spec.facts.model_dir)
    tokenizer, files = load_tokenizer(model_dir, spec.facts.vocab_size)
    prompt_token_ids = _encode(spec.prompt, tokenizer, files)
    _check_length(prompt_token_ids, spec)
    eos = load_model_config(model_dir).eos_token_ids or files.eos_token_ids
    params = _params(spec.prompt, tuple(eos), spec.facts.max_model_len - len(prompt_token_ids))
    control.send(ChildReady(Role.FRONTEND, os.getpid(), time.monotonic() - started_s))
    submit = Submit(spec.incarnation << 40, prompt_token_ids, params, time.monotonic_ns())
    _Conversation(spec, control, board, tokenizer, submit).run()


def _encode(prompt: OneShot, tokenizer: TextTokenizer, files: TokenizerFiles) -> list[TokenId]:
    if not prompt.text:
        raise ConfigError("prompt", "is empty", "give some text")
    if prompt.raw or files.chat_template is None:
        return tokenizer.encode([prompt.text], add_special_tokens=True)[0]
    template = ChatTemplate(files.chat_template, files.special_tokens)
    text = template.render([{"role": "user", "content": prompt.text}], True, {})
    # The template writes the special tokens itself.
    return tokenizer.encode([text], add_special_tokens=False)[0]


def _check_length(prompt_token_ids: list[TokenId], spec: ProcessSpec) -> None:
    limit = spec.facts.max_model_len
    if len(prompt_token_ids) >= limit:
        raise ConfigError("prompt", f"has {len(prompt_token_ids)} tokens, max_model_len is {limit}", "shorten it")


def _failure_of(rejected: Rejected) -> ColocateError:
    """Status 400 is about the prompt, and the user can mend it; anything else is about this run."""
    if rejected.status == HTTPStatus.BAD_REQUEST:
        return ConfigError(
            "prompt", rejected.reason, "shorten the prompt, lower --max-tokens, or give more --kv-memory"
        )
    return ChannelClosed(rejected.reason)


def _params(prompt: OneShot, eos_token_ids: tuple[TokenId, ...], room: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=min(prompt.max_tokens, room),
        seed=prompt.seed,
        temperature=prompt.temperature,
        top_p=prompt.top_p,
        top_k=prompt.top_k,
        min_p=prompt.min_p,
        eos_token_ids=eos_token_ids,
    )


class _Conversation:
    """One request from submission to its last token, also across a restart of the engine."""

    def __init__(
        self, spec: ProcessSpec, control: ControlChannel, board: Board, tokenizer: TextTokenizer, submit: Submit
    ) -> None:
        self._control = control
        self._board = board
        self._submit = submit
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=True)
        self._output_token_ids: list[TokenId] = []
        self._is_sent = False
        self._is_over = False
        self._connect(spec.engine_address)

    def run(self) -> None:
        try:
            while not self._is_over:
                if not self._is_sent:
                    self._is_sent = self._channel.send(self._submit)
                self._waiter.wait(_BEAT_S if self._is_sent else 0.005)
                self._board.beat(Role.FRONTEND, time.monotonic_ns())
                self._read_engine()
                self._read_control()
        finally:
            self._channel.close()

    def _connect(self, address: str) -> None:
        self._channel = connect_to_engine(address, Role.FRONTEND)
        self._waiter = Waiter([self._control, self._channel])

    def _read_engine(self) -> None:
        while (message := self._channel.recv()) is not None:
            if isinstance(message, Outputs):
                for item in message.items:
                    self._take(item)
            elif isinstance(message, Rejected):
                raise _failure_of(message)

    def _take(self, item: OutputItem) -> None:
        self._output_token_ids += item.token_ids
        text = "".join(self._detokenizer.step(token_id) for token_id in item.token_ids)
        if item.finish is not None:
            text += self._detokenizer.flush() + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()
        if item.finish is FinishReason.ERROR:
            raise ChannelClosed(item.error or "the request failed")
        self._is_over = self._is_over or item.finish is not None

    def _read_control(self) -> None:
        while (message := self._control.recv()) is not None:
            if isinstance(message, Shutdown):
                self._is_over = True
            elif isinstance(message, EngineAt):
                self._channel.close()
                self._connect(message.address)
                # What was received counts as output: the engine of the new epoch goes on behind it.
                received = list(self._output_token_ids)
                self._submit = structs.replace(self._submit, output_token_ids=received, resubmitted=True)
                self._is_sent = False
