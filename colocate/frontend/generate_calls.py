"""`/v1/completions` and `/v1/chat/completions`: from a body to a submitted generation and its delivery."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from colocate.config.serve import HttpSection
from colocate.errors import RequestError
from colocate.frontend.answers import Answer, AnswerContext, ChatAnswer, CompletionAnswer
from colocate.frontend.body import read_body
from colocate.frontend.delivery import Delivery
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.gate import REQUEST_ID_KEY
from colocate.frontend.generation import Choice, Generation, TextOptions
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.parameters import (
    check_fields,
    resolve_max_tokens,
    sampling_params,
    stop_strings,
)
from colocate.frontend.prompts import Prompt, PromptReader
from colocate.frontend.request_log import log_refused
from colocate.frontend.schemas import ChatCompletionRequest, CompletionRequest
from colocate.frontend.slo import RequestSlo, SloTable
from colocate.frontend.stages import wants_stages
from colocate.frontend.status import DaemonStatus
from colocate.frontend.text_workers import TextWorkers
from colocate.messages.client import Submit
from colocate.telemetry.promises import all_missed

# More choices than this in one request would hold the event loop while they are submitted.
MAX_CHOICES = 512

# Scored tokens and alternatives of all echoed prompts of one request. They are gathered before anything can be sent, so
# no back-pressure bounds them: this is some 3 MB between the processes, 30 MB of JSON, and a second to render.
MAX_SCORED_PROMPT = 200_000

_Call = Callable[[Request, bytes, int], Awaitable[tuple[Delivery, bool]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCalls:
    """The two handlers. Everything they refuse is a RequestError; the application renders it."""

    reader: PromptReader
    client: EngineClient
    measures: RequestMeasures
    status: DaemonStatus
    http: HttpSection
    workers: TextWorkers
    model_names: tuple[str, ...]
    max_model_len: int
    max_queue: int
    slo: SloTable

    async def completions(self, request: Request) -> Response:
        return await self._logged(request, self._completions)

    async def chat_completions(self, request: Request) -> Response:
        return await self._logged(request, self._chat)

    async def _logged(self, request: Request, call: _Call) -> Response:
        """A request refused before it was submitted leaves its line too."""
        arrival_ns = time.monotonic_ns()
        delivery: Delivery | None = None
        try:
            self.status.check_admission()
            body = await read_body(request, self.http.max_body_bytes)
            delivery, stream = await call(request, body, arrival_ns)
            delivery.start(request.receive)
        except RequestError as error:
            if error.status in (429, 503):  # those that the engine refuses are counted where its answer arrives
                self.measures.rejected[error.status] += 1
                self._count_missed(request, delivery)
            log_refused(request.scope[REQUEST_ID_KEY], request.url.path, error)
            raise
        return await (delivery.stream() if stream else delivery.whole())

    def _count_missed(self, request: Request, delivery: Delivery | None) -> None:
        if delivery is not None:
            for choice in delivery.generation.choices:
                choice.miss()
        else:  # how many choices, and a class in the body, are not known yet
            slo = self.slo.of_refused(request.headers)
            self.measures.slo.add(slo.name, all_missed(slo))

    async def _completions(self, request: Request, body: bytes, arrival_ns: int) -> tuple[Delivery, bool]:
        parsed = await self.reader.parse(body, CompletionRequest)
        self.check_model(parsed.model)
        check_fields(parsed, self.reader.tokenizer.vocab_size)
        self._check_num_choices(len(parsed.prompt), parsed.n or 1)
        prompts = await self.reader.completion(parsed.prompt, parsed.add_special_tokens)
        if parsed.echo and parsed.logprobs is not None:
            _check_num_scored(prompts, parsed.n or 1, parsed.logprobs)
        asked = 16 if parsed.max_tokens is None else parsed.max_tokens
        delivery = self._delivery(request, parsed, prompts, asked, "max_tokens", arrival_ns)
        return delivery, bool(parsed.stream)

    async def _chat(self, request: Request, body: bytes, arrival_ns: int) -> tuple[Delivery, bool]:
        parsed = await self.reader.parse(body, ChatCompletionRequest)
        self.check_model(parsed.model)
        check_fields(parsed, self.reader.tokenizer.vocab_size)
        self._check_num_choices(1, parsed.n or 1)
        prompt = await self.reader.chat(parsed.messages, parsed.add_generation_prompt, parsed.chat_template_kwargs)
        param, asked = "max_completion_tokens", parsed.max_completion_tokens
        if asked is None:
            param, asked = "max_tokens", parsed.max_tokens
        return self._delivery(request, parsed, [prompt], asked, param, arrival_ns), bool(parsed.stream)

    def check_model(self, name: str) -> None:
        if name not in self.model_names:
            message = f"the model {name!r} does not exist here; this server has: {', '.join(self.model_names)}"
            raise RequestError(message, status=404, param="model", code="model_not_found")

    def _check_num_choices(self, num_prompts: int, n: int) -> None:
        limit = min(MAX_CHOICES, self.max_queue)  # a request that can never be admitted whole would retry for ever
        if num_prompts * n > limit:
            message = f"{num_prompts} prompts times n = {n} is more than {limit} choices in one request"
            raise RequestError(message, param="n" if num_prompts == 1 else "prompt")

    def _delivery(
        self,
        request: Request,
        parsed: CompletionRequest | ChatCompletionRequest,
        prompts: list[Prompt],
        asked: int | None,
        asked_param: str,
        arrival_ns: int,
    ) -> Delivery:
        slo = self.slo.of_request(request.headers, parsed.slo_class)
        generation = self._generation(parsed, prompts, asked, asked_param, arrival_ns, slo)
        request_id = parsed.request_id or request.scope[REQUEST_ID_KEY]
        options = parsed.stream_options
        include_usage = options is not None and options.include_usage
        chat = isinstance(parsed, ChatCompletionRequest)
        context = AnswerContext(
            answer_id=f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            model=parsed.model,
            created_s=int(time.time()),
            prompts=[prompt.token_ids for prompt in prompts],
            n=parsed.n or 1,
            logprobs=parsed.logprobs is not None and parsed.logprobs is not False,
            return_token_ids=bool(parsed.return_token_ids),
            include_usage=include_usage,
            running_usage=include_usage and options is not None and options.continuous_usage_stats,
            tokenizer=self.reader.tokenizer,
            hidden_ids=self.reader.tokenizer.special_ids if parsed.skip_special_tokens else frozenset(),
        )
        answer: Answer = ChatAnswer(context) if chat else CompletionAnswer(context)
        return Delivery(
            generation=generation,
            client=self.client,
            workers=self.workers,
            answer=answer,
            request_id=request_id,
            model=parsed.model,
            keepalive_s=self.http.keepalive_s,
            include_usage=include_usage,
            tell_stages=wants_stages(request.headers),
        )

    def _generation(
        self,
        parsed: CompletionRequest | ChatCompletionRequest,
        prompts: list[Prompt],
        asked: int | None,
        asked_param: str,
        arrival_ns: int,
        slo: RequestSlo,
    ) -> Generation:
        generation = Generation(self.measures, self.http.stream_buffer_bytes, wake_per_token=bool(parsed.stream))
        echo = isinstance(parsed, CompletionRequest) and bool(parsed.echo)
        options = TextOptions(
            stops=stop_strings(parsed.stop),
            include_stop=parsed.include_stop_str_in_output,
            keep_token_ids=bool(parsed.return_token_ids),
        )
        for prompt in prompts:
            max_tokens = resolve_max_tokens(
                asked, len(prompt.token_ids), self.max_model_len, parsed.min_tokens or 0, prompt.param, asked_param
            )
            params = sampling_params(parsed, max_tokens, self.reader.eos_token_ids)
            echoed = self._text_of(prompt, parsed.skip_special_tokens) if echo else ""
            for index in range(parsed.n or 1):
                submit = Submit(
                    request_id=self.client.new_id(),
                    prompt_token_ids=prompt.token_ids,
                    params=structs.replace(params, choice=index),
                    arrival_ns=arrival_ns,
                    priority=parsed.priority,
                    slo_class=slo.name,
                    ttft_s=slo.ttft_s,
                    tpot_s=slo.tpot_s,
                    cache_salt=parsed.cache_salt or "",
                    itl_s=slo.itl_s,
                )
                detokenizer = self.reader.tokenizer.detokenizer(parsed.skip_special_tokens)
                choice = Choice(generation, len(generation.choices), submit, detokenizer, options, slo.slo)
                choice.echo(echoed)
                generation.add(choice)
        return generation

    def _text_of(self, prompt: Prompt, skip_special_tokens: bool) -> str:
        if prompt.text is not None:
            return prompt.text
        return self.reader.tokenizer.decode(prompt.token_ids, skip_special_tokens)


def _check_num_scored(prompts: list[Prompt], n: int, num_top: int) -> None:
    num_tokens = n * sum(len(prompt.token_ids) for prompt in prompts)
    if num_tokens * (num_top + 1) > MAX_SCORED_PROMPT:
        message = (
            f"echo with logprobs: {num_tokens} prompt tokens of all choices times {num_top} + 1 is more than "
            f"{MAX_SCORED_PROMPT} scores in one request; ask for fewer logprobs, or for fewer prompts at a time"
        )
        raise RequestError(message, param="logprobs")
