"""Language models behind an OpenAI-compatible server: hosted ones, vLLM, SGLang, llama.cpp and others.

With the served model's `tokenizer` at hand, prompts are bound to it, cut by its tokens and sent as token ids to
`/completions`, so that the server puts no template of its own around them and special tokens inside texts are split.
Without it, a prompt's conversation goes as texts to `/chat/completions` and a plain template to `/completions`; what is
cut is then cut by an estimate (`rerank.prompts.texts`).

Servers show the log-probabilities of a few tokens, 20 at most by OpenAI's own rule.  A label that is not among them is
taken to be as likely as it can be at most: no likelier than the least likely token shown, nor than all that are not
shown together.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from rerank.engines.cache import request_key
from rerank.engines.engine import Asked, Asker, Engine, Writer, writing_prompt
from rerank.engines.http_client import (
    HttpClient,
    MalformedError,
    Reply,
    RequestError,
    Retry,
    Session,
    UnfitServerError,
    check_limits,
    check_url,
    is_finite,
    key_digest,
    not_before,
    read_key,
    together,
)
from rerank.engines.language_model import Sampling
from rerank.engines.meter import CHARACTERS_OF_A_TOKEN, Meter, Size, answer_form, by_prompt
from rerank.engines.passages import Passages, Span, token_passages, word_passages
from rerank.engines.samples import averaged
from rerank.errors import ConfigError, ModelError
from rerank.extras import need
from rerank.ranking import ScoreKind
from rerank.rules.rule import Answer
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.prompts.binding import BoundPrompt
    from rerank.prompts.parsers import Raw
    from rerank.prompts.prompt import Prompt
    from rerank.prompts.reading import Count
    from rerank.prompts.texts import TextPrompt

logger = logging.getLogger(__name__)
T = TypeVar("T")

READING = 1
"""Raised when replies are read in another way, so that what was stored does not fit any more."""
MOST_SHOWN = 20
"""Tokens whose log-probabilities servers show at most, unless told otherwise."""
_ROUNDING = 1e-6
"""What the probabilities of a few tokens may miss of their sum."""
_LEFT_OUT = frozenset({"temperature", "top_p", "seed"})
"""Fields that some models refuse, and that are then left out."""
_BLANKS = " \t\r\n▁Ġ"


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, in any currency.

    >>> Price(input=0.5, output=2.0).of(prompt_tokens=2_000_000, completion_tokens=500_000)
    2.0
    """

    input: float
    """Of prompts."""
    output: float
    """Of what is written."""

    def __post_init__(self) -> None:
        if not (0 <= self.input < math.inf and 0 <= self.output < math.inf):
            raise ConfigError(f"price: input is {self.input} and output {self.output}; 0 or more is needed")

    def of(self, prompt_tokens: int, completion_tokens: int = 0) -> float:
        """The price of so many tokens."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1_000_000


@dataclass(frozen=True, repr=False)
class OpenAIEngine(Engine):
    """A language model on a server that speaks OpenAI's API, asked by a prompt.

    Requests that come to nothing leave the order as it is and are counted as `failed requests`.

    >>> OpenAIEngine("qwen", "http://localhost:8000/v1")
    OpenAIEngine(model='qwen', url='http://localhost:8000/v1')
    """

    model: str
    """The name that the server knows the model by."""
    url: str
    """The address before `/chat/completions`: usually it ends with `/v1`."""
    api_key_env: str | None = None
    """The environment variable that holds the key; None sends none."""
    tokenizer: str | None = None
    """Where the model's tokenizer is: a catalogue name, a folder or a hub id.  Prompts are then cut by tokens and sent
    as token ids, which vLLM, SGLang and others take.  None: texts, cut by an estimate of 3 bytes a token."""
    max_tokens: int = 4096
    """Tokens of a prompt at most; documents are cut to fit, then the query, never the template."""
    sampling: Sampling = Sampling()
    """How text is generated, for prompts whose answers are written."""
    max_concurrent: int = 8
    """Requests under way at most."""
    timeout_seconds: float = 120.0
    """What one try of a request may take."""
    retry: Retry = Retry()
    """How long the server is given."""
    expiry_days: float | None = 30.0
    """How old a kept answer may be, because servers change models without a new name; None: any age."""
    price: Price | None = None
    """Per million tokens, for `--dry-run`."""
    extra_body: str = "{}"
    """A JSON object that is put into every request, for what a server knows beyond OpenAI's API, e.g.
    `{"chat_template_kwargs": {"enable_thinking": false}}`."""

    def __post_init__(self) -> None:
        check_url(self.label, self.url)
        check_limits(self.label, self.max_concurrent, self.timeout_seconds, self.expiry_days)
        if self.max_tokens < 1:
            raise ConfigError(f"openai: max_tokens is {self.max_tokens}, at least 1 is needed")
        if self.sampling.thinking_tokens is not None:
            raise ConfigError(
                "openai: sampling.thinking_tokens is for models on this machine; servers have options of their own for "
                "how long is reasoned, which extra_body takes"
            )
        self.extra()

    def extra(self) -> dict[str, Any]:
        """The fields of `extra_body`."""
        try:
            found = json.loads(self.extra_body)
        except ValueError as error:
            raise ConfigError(f"openai: extra_body is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise ConfigError(f"openai: extra_body is {self.extra_body[:60]!r}; a JSON object is needed")
        return found

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The server with the prompt, as texts or bound to the tokenizer; nothing is sent yet."""
        samples = self.sampling.each() if self._needed(prompt).verb == "generate" else [self.sampling]
        return averaged([replace(self, sampling=sampling)._served(prompt, runtime, self) for sampling in samples])

    def writer(self, prompt: str, n_texts: int, runtime: Runtime) -> Writer:
        """The server; each text of a query has a seed of its own: `sampling.seed` and those after it."""
        writing_prompt(self, prompt, self.sampling, n_texts)
        seeds = range(self.sampling.seed, self.sampling.seed + n_texts)
        engines = [replace(self, sampling=replace(self.sampling, seed=seed)) for seed in seeds]
        return _Writing([engine._served(prompt, runtime, self) for engine in engines])

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """By the tokenizer, where it is given; else by the estimate that texts are cut by."""
        form = self._form(self._needed(prompt), runtime)
        written = self.sampling.samples * self.sampling.max_tokens if form.prompt.verb == "generate" else 1
        return replace(form.meter(written), price=self.price)

    def _needed(self, name: str | None) -> Prompt:
        """The prompt, when it is one that a server can answer."""
        if name is None:
            raise ConfigError(f"{self.label}: needs a prompt: the name of a profile (rerank prompts list) or a file")
        from rerank.prompts.prompt import load_prompt

        prompt = load_prompt(name)
        if prompt.seq2seq:
            raise ConfigError(f"{self.label}: the prompt {name!r} is for encoder-decoders, which it cannot ask")
        if prompt.parser == "logit":
            raise ConfigError(
                f"{self.label}: the prompt {name!r} reads a logit as it is, and servers show log-probabilities; take a "
                "prompt with two answers, such as yes-no"
            )
        return prompt

    def _served(self, name: str | None, runtime: Runtime, shared: OpenAIEngine | None = None) -> _Served:
        """The server with the prompt; `shared` is the engine whose connections are used."""
        prompt = self._needed(name)
        key, engine = read_key(self.label, self.api_key_env), shared or self
        server = runtime.resource(("openai", engine, key_digest(key)), lambda: _Server(engine, key))
        runtime.note("prompt", {"name": name, "fingerprint": prompt.fingerprint})
        return _Served(self, server, self._form(prompt, runtime))

    def _form(self, prompt: Prompt, runtime: Runtime) -> _Form:
        if self.tokenizer is None:
            from rerank.prompts.texts import TextPrompt

            texts = TextPrompt(prompt)
            self._check_texts(texts)
            return _Texts(self, texts)
        name = self.tokenizer
        tokenizer = runtime.resource(("tokenizer", name), lambda: _load_tokenizer(name, runtime))
        bound = runtime.resource(("prompt", prompt.fingerprint, "tokenizer", name), lambda: prompt.bind(tokenizer))
        return _Tokens(self, bound)

    def _check_texts(self, texts: TextPrompt) -> None:
        """Raises a `ConfigError` where the prompt cannot be asked without the tokenizer."""
        name = texts.prompt.name
        if texts.prompt.verb == "likelihood":
            raise ConfigError(
                f"{self.label}: the prompt {name!r} scores the tokens of the query, which takes the model's tokenizer: "
                "give `tokenizer`, or take another prompt"
            )
        if texts.begins_answer and not self.extra().get("continue_final_message"):
            raise ConfigError(
                f"{self.label}: the prompt {name!r} begins the answer itself, which chat servers do not take: give "
                "`tokenizer`, or, where the server is vLLM or SGLang, extra_body: "
                '\'{"continue_final_message": true, "add_generation_prompt": false}\''
            )


def _load_tokenizer(name: str, runtime: Runtime) -> Any:
    from rerank.models.resolve import locate_model

    transformers = need("transformers", "dense", f"the tokenizer {name!r}")
    path = locate_model(name, home=runtime.home, weights=False).path
    try:
        return transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"openai: the tokenizer {name!r} ({path}) does not load: {reason}") from error


# -- what is asked ------------------------------------------------------------


class Said(NamedTuple):
    """What is kept of a reply."""

    model: str
    """The name that the server gives what answered: often more exact than the one that was asked for."""
    finish: str = ""
    """Why the text ended: `stop`, `length`, `content_filter`, ..."""
    text: str = ""
    """What was written, reasoning included."""
    shown: tuple[tuple[str, float], ...] = ()
    """Tokens at the place of the answer, with their log-probabilities."""
    mean: float | None = None
    """The mean log-probability of the query's tokens."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As the server counts them; 0 where it does not."""

    def pack(self) -> bytes:
        """As it is stored."""
        return json.dumps(self).encode()

    @staticmethod
    def unpack(data: bytes) -> Said:
        """What `pack` wrote."""
        model, finish, text, shown, *rest = json.loads(data)
        return Said(model, finish, text, tuple((token, value) for token, value in shown), *rest)


class _Call(NamedTuple):
    """A question as it is sent."""

    path: str
    body: dict[str, Any]
    read: Callable[[Reply], Said]
    labels: tuple[Callable[[str], bool], ...] = ()
    """For each label, which of the tokens that are shown stand for it."""


_Shown = tuple[str, Sequence[str]]
"""A query and the documents shown with it."""


class _Form(Protocol):
    """A prompt as a server takes it."""

    prompt: Prompt
    begun: str
    """What the prompt itself begins the answer with."""

    def calls(self, shown: Sequence[_Shown], runtime: Runtime) -> list[_Call | None]:
        """What asks about each, None where nothing is left to be asked."""
        ...

    def answer(self, raw: Raw, n: int, count: Count) -> Answer:
        """One score a document."""
        ...

    def text(self, raw: str, count: Count) -> str:
        """What was written about the query."""
        ...

    def meter(self, written: int) -> Meter:
        """How much is asked, when so many tokens are written at most."""
        ...

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        """Where the passages of each text lie."""
        ...


class _Tokens:
    """Token ids, for `/completions`."""

    def __init__(self, engine: OpenAIEngine, bound: BoundPrompt) -> None:
        self._engine, self._bound = engine, bound
        self.prompt, self.begun = bound.prompt, bound.begun

    def calls(self, shown: Sequence[_Shown], runtime: Runtime) -> list[_Call | None]:
        requests = self._bound.requests(shown, self._engine.max_tokens)
        runtime.count("truncated documents", sum(request.truncated_documents for request in requests))
        runtime.count("truncated queries", sum(request.truncated_query for request in requests))
        return [self._call(list(request.tokens), request.continuations) for request in requests]

    def _call(self, tokens: list[int], continuations: tuple[tuple[int, ...], ...]) -> _Call | None:
        verb = self.prompt.verb
        if verb == "likelihood":
            target = continuations[0]
            if not target:
                return None
            body = {"prompt": tokens + list(target), **_ECHO}
            first = len(tokens)
            return _Call("completions", body, lambda reply: _read_echo(reply, first, target))
        if verb == "choices":
            labels = tuple(self._stands_for(label[0]) for label in continuations)
            body = {"prompt": tokens, **_ONE_TOKEN, "logprobs": MOST_SHOWN}
            return _Call("completions", body, _read_choices, labels)
        sampling = self._engine.sampling
        return _Call("completions", {"prompt": tokens, **_options(sampling)}, lambda reply: _read_text(reply, sampling))

    def _stands_for(self, label: int) -> Callable[[str], bool]:
        tokenizer = self._bound.tokenizer
        written = {tokenizer.decode([label]), tokenizer.convert_ids_to_tokens(label), f"token_id:{label}"}
        return written.__contains__

    def answer(self, raw: Raw, n: int, count: Count) -> Answer:
        return self._bound.answer(raw, n, count)

    def text(self, raw: str, count: Count) -> str:
        return self._bound.text(raw, count)

    def meter(self, written: int) -> Meter:
        meter = by_prompt(self._bound, self._engine.max_tokens)

        def sizes(questions: Sequence[Asked]) -> list[Size]:
            # Which tokens a server reuses is its own matter, and so is what it charges for them.
            return [size._replace(shared=0, generated=written) for size in meter.sizes(questions)]

        return replace(meter, sizes=sizes)

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return token_passages(self._bound.tokenizer, texts, passages)


class _Texts:
    """Texts: a conversation for `/chat/completions`, or a plain text for `/completions`."""

    def __init__(self, engine: OpenAIEngine, texts: TextPrompt) -> None:
        self._engine, self._texts = engine, texts
        self.prompt, self.begun = texts.prompt, texts.begun

    def calls(self, shown: Sequence[_Shown], runtime: Runtime) -> list[_Call | None]:
        made: list[_Call | None] = []
        for query, documents in shown:
            request = self._texts.request(query, documents, self._engine.max_tokens)
            runtime.count("truncated documents", request.truncated_documents)
            runtime.count("truncated queries", int(request.truncated_query))
            if self.prompt.messages:
                place: dict[str, Any] = {"messages": [turn._asdict() for turn in request.turns]}
            else:
                place = {"prompt": request.turns[0].content}
            made.append(self._call(place, request.labels))
        return made

    def _call(self, place: dict[str, Any], labels: tuple[str, ...]) -> _Call:
        path = "chat/completions" if self.prompt.messages else "completions"
        if self.prompt.verb == "generate":
            sampling = self._engine.sampling
            return _Call(path, {**place, **_options(sampling)}, lambda reply: _read_text(reply, sampling))
        shown = {"logprobs": True, "top_logprobs": MOST_SHOWN} if self.prompt.messages else {"logprobs": MOST_SHOWN}
        return _Call(path, {**place, **_ONE_TOKEN, **shown}, _read_choices, tuple(map(_reads_as, labels)))

    def answer(self, raw: Raw, n: int, count: Count) -> Answer:
        return self._texts.answer(raw, n, count)

    def text(self, raw: str, count: Count) -> str:
        return self._texts.text(raw, count)

    def meter(self, written: int) -> Meter:
        def sizes(questions: Sequence[Asked]) -> list[Size]:
            made = []
            for each in questions:
                request = self._texts.request(each.query, each.documents, self._engine.max_tokens)
                characters = sum(len(turn.content) for turn in request.turns)
                cuts = request.truncated_documents, int(request.truncated_query)
                made.append(Size(-(-characters // CHARACTERS_OF_A_TOKEN), 0, written, *cuts))
            return made

        counted_by = f"{CHARACTERS_OF_A_TOKEN} characters a token"
        return Meter(sizes, counted_by, self.prompt.most_documents, answer_form(self.prompt))

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return word_passages(texts, passages)


_ONE_TOKEN = {"max_tokens": 1, "temperature": 0.0}
# The one token that is written is of no use, but not every server can write none.
_ECHO = {**_ONE_TOKEN, "echo": True, "logprobs": 1}


def _options(sampling: Sampling) -> dict[str, Any]:
    """The fields that say how text is generated; those without effect are left out, since some servers lack them."""
    options: dict[str, Any] = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.temperature > 0:
        options |= {"top_p": sampling.top_p, "seed": sampling.seed}
    return options | ({"stop": list(sampling.stop)} if sampling.stop else {})


def _reads_as(label: str) -> Callable[[str], bool]:
    """Whether a token is this label, blanks around it aside, and for words their case."""
    wanted = label.strip(_BLANKS)
    if len(wanted) == 1:
        return lambda token: token.strip(_BLANKS) == wanted
    return lambda token: token.strip(_BLANKS).casefold() == wanted.casefold()


# -- asking ------------------------------------------------------------


class _Server:
    """A server, and what was learned of it."""

    def __init__(self, engine: OpenAIEngine, key: str | None) -> None:
        self.client = HttpClient(
            key, max_concurrent=engine.max_concurrent, timeout_seconds=engine.timeout_seconds, retry=engine.retry
        )
        self._url = engine.url.rstrip("/")
        self._changes: dict[str, str | None] = {}
        """Fields that the model wants under another name, or not at all."""

    async def ask(self, session: Session, call: _Call) -> Said:
        """What the server says.

        Raises:
            RequestError: nothing.
            ServerError: nor to any other question.
        """

        async def job(session: Session) -> Said:
            while True:
                body = self._changed(call.body)
                try:
                    return await session.post(f"{self._url}/{call.path}", body, call.read)
                except RequestError as error:
                    if self._learns(error, body):
                        continue
                    if error.kind == "refused" and "logprob" in str(error):
                        session.stop(f"{error}; {_NO_LOG_PROBABILITIES}")
                    if error.status == 404:
                        raise await self._explained(session, error) from error
                    if error.kind == "refused" and isinstance(body.get("prompt"), list) and not session.known:
                        session.stop(f"{error}; a server that takes no token ids is asked without `tokenizer`")
                    raise

        return await self.client.run(session, job)

    def _changed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        names = {name: self._changes.get(name, name) for name in body}
        return {new: body[name] for name, new in names.items() if new is not None}

    def _learns(self, error: RequestError, body: Mapping[str, Any]) -> bool:
        """Whether the server told how else it wants the request."""
        if error.status not in (400, 422):
            return False
        if "max_tokens" in body and "max_completion_tokens" in str(error):
            self._changes["max_tokens"] = "max_completion_tokens"
        elif error.said.param in _LEFT_OUT and error.said.param in body:
            logger.warning("the server does not take %r, which is left out: %s", error.said.param, error)
            self._changes[error.said.param] = None
        else:
            return False
        return True

    async def _explained(self, session: Session, error: RequestError) -> RequestError:
        """The error with the names of the models that there are, where the server tells them."""

        def names(reply: Reply) -> list[str]:
            return [each["id"] for each in _items(_object(reply.value), "data") if isinstance(each.get("id"), str)]

        try:
            known = await session.get(f"{self._url}/models", names)
        except RequestError:
            known = []
        served = f"; it serves: {', '.join(known[:20])}" if known else "; is `url` right up to /v1?"
        return RequestError(f"{error}{served}", error.kind, error.status)


class _Served:
    """A language model on a server, with its prompt."""

    kind = ScoreKind.UNKNOWN
    at_once = 1
    """Each question is a request of its own, and a rule can go on as soon as its own are answered."""

    def __init__(self, engine: OpenAIEngine, server: _Server, form: _Form) -> None:
        self._engine, self._server, self._form = engine, server, form
        self._session = server.client.session()
        self.most_documents: int | None = form.prompt.most_documents
        self.in_flight = engine.max_concurrent
        self._always = {"model": engine.model, **engine.extra()}

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        return self.finish(self.ask_async(questions, runtime))

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, waited for."""
        return self._server.client.finish(work)

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return self._form.passages(texts, passages)

    async def ask_async(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        calls = self._form.calls([(asked.query, asked.documents) for asked in questions], runtime)
        said = await self._said(calls, runtime)
        return [
            self._answer(call, found, asked, runtime) for call, found, asked in zip(calls, said, questions, strict=True)
        ]

    async def texts(self, queries: Sequence[str], runtime: Runtime) -> list[str]:
        """What is written about each query; empty where nothing usable came."""
        said = await self._said(self._form.calls([(query, ()) for query in queries], runtime), runtime)
        runtime.count("unfinished texts", sum(found is not None and found.finish == "length" for found in said))
        return [self._form.text("" if found is None else found.text, runtime.count) for found in said]

    async def _said(self, calls: Sequence[_Call | None], runtime: Runtime) -> list[Said | None]:
        """What was said to each; None where that failed, or nothing was asked."""
        bodies = [None if call is None else call._replace(body={**call.body, **self._always}) for call in calls]
        keys = [None if call is None else self._key(call) for call in bodies]
        wanted = {key: call for key, call in zip(keys, bodies, strict=True) if key is not None and call is not None}
        cache, since = runtime.requests, not_before(self._engine.expiry_days)
        stored = [] if cache is None else zip(wanted, cache.get(list(wanted), since), strict=True)
        said = {key: Said.unpack(data) for key, data in stored if data is not None}
        runtime.count("requests", len(calls))
        runtime.count("cached answers", sum(key in said for key in keys))
        self._session.trusted |= bool(said)

        async def one(key: bytes, call: _Call) -> None:
            try:
                found = await self._server.ask(self._session, call)
            except RequestError:
                return
            runtime.count("prompt tokens", found.prompt_tokens)
            runtime.count("completion tokens", found.completion_tokens)
            if cache is not None:
                (data,) = cache.put({key: found.pack()}, since)
                found = Said.unpack(data)
            said[key] = found

        try:
            await together(one(key, call) for key, call in wanted.items() if key not in said)
        finally:
            for what, number in self._session.counted().items():
                runtime.count(what, number)
        runtime.count("failed requests", sum(key is not None and key not in said for key in keys))
        for name in sorted({each.model for each in said.values()} - {""}):
            runtime.note("served model", name)
        return [None if key is None else said.get(key) for key in keys]

    def _key(self, call: _Call) -> bytes:
        place = f"http {READING} {self._engine.url.rstrip('/')}/{call.path}"
        return request_key(place, self._form.prompt.verb, json.dumps(call.body, sort_keys=True))

    def _answer(self, call: _Call | None, said: Said | None, asked: Asked, runtime: Runtime) -> Answer:
        n = len(asked.documents)
        if call is None:
            return self._form.answer(0.0, n, runtime.count)  # an empty query is as likely after any document
        if said is None:
            return (None,) * n
        verb = self._form.prompt.verb
        if verb == "likelihood":
            return self._form.answer(math.nan if said.mean is None else said.mean, n, runtime.count)
        if verb == "choices":
            logits, missing = label_scores(said.shown, call.labels)
            runtime.count("labels not shown", missing)
            return self._form.answer(logits, n, runtime.count)
        runtime.count("unfinished answers", int(said.finish == "length"))
        runtime.count("filtered answers", int(said.finish == "content_filter"))
        if said.text:
            runtime.explain(asked, self._form.begun + said.text)
        return self._form.answer(said.text, n, runtime.count)


class _Writing:
    """A server that writes about queries, once for each of several seeds."""

    def __init__(self, served: Sequence[_Served]) -> None:
        self._served = served

    def write(self, queries: Sequence[str], runtime: Runtime) -> list[tuple[str, ...]]:
        texts = [each.finish(each.texts(queries, runtime)) for each in self._served]
        return list(zip(*texts, strict=True))


def label_scores(
    shown: Sequence[tuple[str, float]], labels: Sequence[Callable[[str], bool]]
) -> tuple[list[float], int]:
    """A log-probability for each label, and how many labels were not shown.

    Tokens that stand for the same label are added up.  A label that is not shown gets the least upper bound that is
    known: the lowest log-probability shown, or that of all tokens not shown together.  Where no label is shown, all get
    minus infinity: nothing was said.

    >>> shown = [("Yes", math.log(0.5)), ("the", math.log(0.3))]
    >>> scores, missing = label_scores(shown, [_reads_as("yes"), _reads_as("no")])
    >>> [round(math.exp(score), 3) for score in scores], missing
    ([0.5, 0.2], 1)
    """
    found = [[value for token, value in shown if stands(token)] for stands in labels]
    missing = sum(not values for values in found)
    if missing == len(labels):
        return [-math.inf] * len(labels), missing
    floor = min(value for _, value in shown)
    rest = 1 - math.fsum(math.exp(value) for _, value in shown)
    if rest > _ROUNDING:
        floor = min(floor, math.log(rest))
    return [_log_sum(values) if values else floor for values in found], missing


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


# -- replies ------------------------------------------------------------

_NO_LOG_PROBABILITIES = (
    "this prompt needs log-probabilities: take a server that gives them, or a prompt whose answers are written "
    "(`verb: generate`)"
)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedError(f"an object was expected, not {type(value).__name__}")
    return value


def _items(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise MalformedError(f"no list of objects under {name!r}, but {', '.join(value)[:80] or 'nothing'}")
    return found


def _choice(reply: Reply) -> tuple[dict[str, Any], Said]:
    """The first choice of a reply, and what is said beside it."""
    value = _object(reply.value)
    choices = _items(value, "choices")
    if not choices:
        raise MalformedError("the list of choices is empty")
    usage = value.get("usage")
    spent = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    model, finish = value.get("model"), choices[0].get("finish_reason")
    said = Said(model if isinstance(model, str) else "", finish if isinstance(finish, str) else "")
    return choices[0], said._replace(prompt_tokens=spent[0], completion_tokens=spent[1])


def _count(usage: Any, name: str) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else 0


def _read_text(reply: Reply, sampling: Sampling) -> Said:
    """What was written: reasoning that the server keeps apart is put back before it, in the tags that parsers know."""
    choice, said = _choice(reply)
    if "message" in choice:
        message = _object(choice["message"])
        text = _content(message.get("content"))
        reasoning = next((message[name] for name in ("reasoning", "reasoning_content") if message.get(name)), "")
        if isinstance(reasoning, str) and reasoning and "</think>" not in text:
            unfinished = said.finish == "length" and not text
            text = f"<think>{reasoning}" if unfinished else f"<think>{reasoning}</think>\n{text}"
    else:
        plain = choice.get("text")
        if not isinstance(plain, str):
            raise MalformedError("the choice has neither a message nor a text")
        text = plain
    stop = choice.get("stop_reason")
    if stop in sampling.stop and not text.endswith(stop):
        text += stop
    return said._replace(text=text)


def _content(content: Any) -> str:
    """The text of a message, which some servers give in parts, and none where the model refused."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise MalformedError(f"the content of the message is {type(content).__name__}, not a text")
    return content or ""


def _read_choices(reply: Reply) -> Said:
    """The tokens shown at the first place."""
    choice, said = _choice(reply)
    found = _log_probabilities(choice)
    shown: list[tuple[Any, Any]]
    if "content" in found:
        places = _items(found, "content")
        shown = (
            [(each.get("token"), each.get("logprob")) for each in _items(places[0], "top_logprobs")] if places else []
        )
    else:
        tops = found.get("top_logprobs")
        if not isinstance(tops, list):
            raise UnfitServerError(_NO_LOG_PROBABILITIES)
        shown = list(_object(tops[0]).items()) if tops else []
    kept = [(token, value) for token, value in shown if isinstance(token, str) and is_finite(value)]
    return said._replace(shown=tuple(kept))


def _read_echo(reply: Reply, first: int, target: tuple[int, ...]) -> Said:
    """The mean log-probability of the `target`, whose tokens follow the `first` ones of the prompt."""
    choice, said = _choice(reply)
    values: Sequence[Any]
    places = slice(first, first + len(target))
    if isinstance(choice.get("prompt_logprobs"), list):
        shown = choice["prompt_logprobs"][places]
        entries = [each.get(str(token)) for each, token in zip(shown, target, strict=False) if isinstance(each, dict)]
        values = [entry.get("logprob") for entry in entries if isinstance(entry, dict)]
    else:
        of_tokens = _log_probabilities(choice).get("token_logprobs")
        values = of_tokens[places] if isinstance(of_tokens, list) else ()
    if len(values) != len(target):
        raise UnfitServerError(
            "it gives no log-probabilities of the prompt: take a server whose /completions takes `echo` with "
            "`logprobs`, as vLLM's does, or a prompt that asks for labels"
        )
    if not all(map(is_finite, values)):
        return said
    return said._replace(mean=math.fsum(values) / len(values))


def _log_probabilities(choice: Mapping[str, Any]) -> dict[str, Any]:
    found = choice.get("logprobs")
    if found is None:
        raise UnfitServerError(_NO_LOG_PROBABILITIES)
    return _object(found)
