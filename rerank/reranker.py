"""The two-line call: `Reranker("name-or-path").rank(query, docs)`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import html
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from rerank.data.corpus import MemoryCorpus
from rerank.engines.engine import Asked, Engine
from rerank.engines.text_model import DType
from rerank.errors import ConfigError, DataError, PipelineError, RerankError
from rerank.ranking import Ranking, ScoreKind
from rerank.rules.rule import Rule
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Flow, Stage
from rerank.stage_for import rerank_stage, reranking_only, stage_for

Doc: TypeAlias = str | tuple[str, str] | Mapping[str, Any]
"""A document: its text; a pair of id and text; or a mapping with `text` or `contents`, and perhaps a `title`, which
stands before the text, and an id (`id`, `_id`, `docno` or `doc_id`).  Without an id it is known by its place."""

Activation: TypeAlias = Callable[[Any], Any]
_COLUMNS = 80
_SHOWN = 10
_ID_COLUMNS = 20


class RankedDoc(NamedTuple):
    """One document of the list that came back."""

    index: int  # type: ignore[assignment]  # a place is what everybody calls so; nobody searches a document
    """Its place in the list that was given, from 0."""
    docno: str
    score: float
    """The stage's own where it scores (a logit, a probability); where it only orders, the number of documents from here
    to the end of the list."""
    rank: int
    """1 for the best."""
    text: str


class Reasoning(NamedTuple):
    """What a model wrote about documents that it was shown together."""

    documents: tuple[int, ...]
    """Their places in the list that was given, in the order shown: the first of them is the model's `[1]` or `A`."""
    text: str
    """As it was written: reasoning, where the model reasons, and its answer, tags among it."""


class RankedDocs(Sequence[RankedDoc]):
    """One query's documents, best first: to iterate, to cut (`docs[:3]`), to print.

    >>> docs = RankedDocs("rain", [RankedDoc(1, "1", 0.75, 1, "It rains."), RankedDoc(0, "0", 0.5, 2, "It snows.")])
    >>> docs
    2 documents for 'rain'
      1     0.7500  1  It rains.
      2     0.5000  0  It snows.
    >>> docs[:1][0].index
    1
    """

    def __init__(
        self,
        query: str,
        docs: Sequence[RankedDoc],
        counts: Mapping[str, int] | None = None,
        reasoning: Sequence[Reasoning] = (),
    ) -> None:
        self.query = query
        self.counts: Mapping[str, int] = counts or {}
        """What was counted for all lists that were ranked together: `calls`, `truncated documents`, ..."""
        self.reasoning = tuple(reasoning)
        """What the model wrote, in the order in which it was asked; only where `explain` was asked for."""
        self._docs = tuple(docs)

    def __len__(self) -> int:
        return len(self._docs)

    @overload
    def __getitem__(self, index: int) -> RankedDoc: ...
    @overload
    def __getitem__(self, index: slice) -> RankedDocs: ...
    def __getitem__(self, index: int | slice) -> RankedDoc | RankedDocs:
        if isinstance(index, slice):
            return RankedDocs(self.query, self._docs[index], self.counts, self.reasoning)
        return self._docs[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RankedDocs):
            return NotImplemented
        return (self.query, self._docs) == (other.query, other._docs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """A line of 80 columns for each of the first ten: rank, score, id, and the beginning of the text."""
        from rich.cells import cell_len

        shown = self._docs[:_SHOWN]
        width = min(_ID_COLUMNS, max((cell_len(_fitted(doc.docno, _ID_COLUMNS)) for doc in shown), default=0))
        lines = [_fitted(f"{len(self):,} document{'' if len(self) == 1 else 's'} for {self.query!r}", _COLUMNS)]
        for doc in shown:
            docno = _fitted(doc.docno, width)
            head = f"{doc.rank:>3}  {doc.score:>9.4f}  {docno}{' ' * (width - cell_len(docno))}"
            lines.append(f"{head}  {_fitted(doc.text, _COLUMNS - cell_len(head) - 2)}".rstrip())
        if len(self) > len(shown):
            lines.append(f"... and {len(self) - len(shown):,} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


class Reranker:
    """Orders documents by how well they answer a query.

    >>> from rerank import Cut
    >>> Reranker(Cut(1)).rank("what is a tie?", ["Two documents with one score.", "A piece of cloth."])
    1 document for 'what is a tie?'
      1     2.0000  0  Two documents with one score.

    The usual way is by a model's name, which says by its files what it is (see `rerank.stage_for`):

        Reranker("cross-encoder/ms-marco-MiniLM-L6-v2").rank("what is a tie?", ["Two documents ...", "A piece ..."])

    What was decided is the attribute `stage`.  Models load at the first call.  May be used from several threads and
    event loops; `with` frees what was loaded at its end, and a later call loads it again.

    Args:
        model: a catalogue name, a folder, a hub id, the address of a server, the name or file of a pipeline that starts
            from lists; or such a stage or an engine itself.
        rule: how comparisons become an order, by name or as an object; default as the model wants it.
        prompt: for language models, the name of a profile or a prompt file; default as the model wants it.
        revision: branch, tag or commit of a hub model.
        dtype: what the model computes in.
        device: where it runs: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        threads: processors to use; default all that the process may use.
        home: the cache root; default as everywhere.
        runtime: what loads and keeps models, to share one between rerankers; default one of its own.

    Raises:
        UnknownNameError: a name that means nothing.
        ConfigError: parts that do not go together.
        ModelError: the model cannot be had, or does not rerank.
        PipelineError: a pipeline that starts from queries.
    """

    def __init__(
        self,
        model: str | Path | Stage | Engine,
        *,
        rule: str | Rule | None = None,
        prompt: str | None = None,
        revision: str | None = None,
        dtype: DType = "auto",
        device: str = "auto",
        threads: int | None = None,
        home: Path | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if isinstance(model, Stage | Engine) and (revision is not None or dtype != "auto"):
            raise ConfigError(f"{model!r} says its revision and dtype itself; leave them out")
        if isinstance(model, Stage):
            if rule is not None or prompt is not None:
                raise ConfigError(f"{model!r} says its rule and prompt itself; leave them out")
            stage = reranking_only(model)
        elif isinstance(model, Engine):
            stage = rerank_stage(model, rule, prompt)
        else:
            # A relative path would read as a hub id.
            name = str(Path.cwd() / model) if isinstance(model, Path) else model
            root = home if runtime is None else runtime.home
            stage = stage_for(name, rule=rule, prompt=prompt, revision=revision, dtype=dtype, home=root)
        self.stage: Stage = stage
        """What ranks."""
        self._runtime = runtime or Runtime(home, device=device, threads=threads, progress=False)
        self._owns = runtime is None
        # A runtime serves one thread at a time.
        self._lock = Lock()
        self._waiting: deque[tuple[_List, Future[RankedDocs]]] = deque()
        self._worker: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"Reranker({self.stage!r})"

    def __enter__(self) -> Reranker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is asked of it, and frees what was loaded, unless others use the runtime too."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown()
        if self._owns:
            with self._lock:
                self._runtime.close()

    # -- lists ----------------------------------------------------------------

    def rank(self, query: str, docs: Iterable[Doc], k: int | None = None, *, explain: bool = False) -> RankedDocs:
        """The documents, best first; none for an empty list.

        Args:
            query: what is asked.
            docs: see `Doc`; equal texts are no problem.
            k: how many come back; default all.
            explain: keep what the model writes (`RankedDocs.reasoning`); most models score and write nothing.

        Raises:
            DataError: a query or document that is none.
            ModelError: the model does not load.
        """
        return self.rank_many([(query, docs)], k, explain=explain)[0]

    def rank_many(
        self, asked: Iterable[tuple[str, Iterable[Doc]]], k: int | None = None, *, explain: bool = False
    ) -> list[RankedDocs]:
        """What `rank` gives for each pair of query and documents, computed together: batches span all lists.

        >>> from rerank import Cut
        >>> [docs[0].text for docs in Reranker(Cut(5)).rank_many([("a", ["b", "c"]), ("d", ["e"])])]
        ['b', 'e']
        """
        _check_k(k)
        lists = [_listed(query, docs, explain=explain) for query, docs in asked]
        with self._lock:
            return [found[:k] for found in self._together(lists)]

    async def arank(
        self, query: str, docs: Iterable[Doc], k: int | None = None, *, explain: bool = False
    ) -> RankedDocs:
        """As `rank`, without holding up the event loop; what is asked side by side is computed together.

        Whatever waits when the reranker comes free goes forward in one batch, from any event loop.  Who stops waiting
        before that is left out; a list that fails, fails alone.

        One thread does the work: models compute in the thread that calls them, and a stage may be any pipeline.  (A
        `rerank.engines.scheduler.Pump` would let a list join between the waves of others, but drives rules alone, so it
        is for servers of one stage.)
        """
        _check_k(k)
        future: Future[RankedDocs] = Future()
        self._waiting.append((_listed(query, docs, explain=explain), future))
        # Once the callers that are ready now have had their turn, so that they share the first batch too.
        asyncio.get_running_loop().call_soon(self._wake)
        return (await asyncio.wrap_future(future))[:k]

    def _wake(self) -> None:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="rerank")
        self._worker.submit(self._answer_waiting)

    def _answer_waiting(self) -> None:
        """Ranks, in one batch, all lists that wait."""
        with self._lock:
            taken: list[tuple[_List, Future[RankedDocs]]] = []
            while self._waiting:
                asked, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    taken.append((asked, future))
            try:
                answers = self._together([asked for asked, _ in taken])
            except Exception:  # whatever it is, only the lists that cause it are to fail
                for asked, future in taken:
                    try:
                        future.set_result(self._together([asked])[0])
                    except Exception as error:
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(taken, answers, strict=True):
                    future.set_result(answer)

    def _together(self, lists: Sequence[_List]) -> list[RankedDocs]:
        """The lists, ranked in one batch; equal ones once."""
        places: dict[_Texts, list[tuple[int, float]]] = {asked.texts: [] for asked in lists}
        counts: Counter[str] = Counter()
        written: dict[_Texts, list[Reasoning]] = {}
        if distinct := [texts for texts in places if texts.documents]:
            first = len(self._runtime.stats)
            explains = any(asked.explains for asked in lists)
            try:
                with contextlib.ExitStack() as listening:
                    told = listening.enter_context(self._runtime.explaining()) if explains else []
                    ranking = self._runtime.rank(self.stage, _ranking(distinct))
            except RerankError as error:
                error.add_note(f"while ranking with {self.stage!r}")
                raise
            finally:
                for stat in self._runtime.stats[first:]:
                    counts.update(stat.counts)
                # Nobody else reads them, and a server would keep them for ever.
                del self._runtime.stats[first:]
            places |= dict(zip(distinct, _places(distinct, ranking), strict=True))
            written = _reasoning(distinct, told)
        return [
            asked.ranked(places[asked.texts], counts, written.get(asked.texts, ()) if asked.explains else ())
            for asked in lists
        ]

    # -- as a cross-encoder ----------------------------------------------------------------

    def predict(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """float32 [n]: the score of each (query, document) pair, in the order given; higher is better.

        Scores are the stage's own: logits of a cross-encoder (sentence-transformers' `predict` would give their sigmoid
        for many models), probabilities of a yes-or-no prompt.

        Raises:
            PipelineError: the stage orders documents and gives no scores.
            DataError: something that is no pair of texts, or a stage that left documents out.
        """
        if self.stage.flow(Flow(frozenset({DOCUMENTS}), ScoreKind.NONE)).kind in (ScoreKind.RANK, ScoreKind.NONE):
            raise PipelineError(f"{self.stage!r} orders lists and gives no scores; use rank, or another rule")
        rows: dict[str, list[int]] = {}
        for row, pair in enumerate(pairs):
            if not _is_pair(pair):
                raise DataError(f"pair {row} is {pair!r:.60}; a query and a document are expected")
            rows.setdefault(pair[0], []).append(row)
        found = self.rank_many((query, [pairs[row][1] for row in some]) for query, some in rows.items())
        scores = np.full(len(pairs), np.nan, dtype=np.float32)
        for some, docs in zip(rows.values(), found, strict=True):
            scores[[some[doc.index] for doc in docs]] = [doc.score for doc in docs]
        if np.isnan(scores).any():
            raise DataError(f"{self.stage!r} left {int(np.isnan(scores).sum()):,} documents out; use rank")
        return scores

    def as_cross_encoder(self) -> AsCrossEncoder:
        """This reranker for code that expects a sentence-transformers `CrossEncoder`."""
        return AsCrossEncoder(self)


class AsCrossEncoder:
    """What code that was written for a sentence-transformers `CrossEncoder` calls: `predict` and its kind of `rank`.

    `Reranker.predict` takes the same pairs, so it needs no stand-in.  `rank` does: the library's takes `top_k` and
    returns dicts with `corpus_id`, ours takes `k` and returns `RankedDocs`.  One method with both faces would return
    now this, now that; so each is what its own callers know, and this class is the bridge.

    >>> from rerank import Cut
    >>> Reranker(Cut(2)).as_cross_encoder().rank("rain", ["It rains.", "Snow."], top_k=1, return_documents=True)
    [{'corpus_id': 0, 'score': 2.0, 'text': 'It rains.'}]
    """

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker

    def predict(
        self,
        inputs: Sequence[tuple[str, str]],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,  # noqa: FBT001 - the library's signature
        activation_fn: Activation | None = None,
        convert_to_numpy: bool = True,  # noqa: FBT001, FBT002
    ) -> npt.NDArray[np.float32] | list[float]:
        """The score of each pair, as `Reranker.predict` gives it.

        Args:
            inputs: (query, document) pairs.
            batch_size: without effect; batches are filled by tokens.
            show_progress_bar: without effect.
            activation_fn: what is made of the scores, from tensor to tensor; default nothing, whatever the folder says.
            convert_to_numpy: an array, else a list of numbers.
        """
        scores = _activated(self._reranker.predict(inputs), activation_fn)
        return scores if convert_to_numpy else scores.tolist()

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,  # noqa: FBT001, FBT002
        batch_size: int = 32,
        show_progress_bar: bool | None = None,  # noqa: FBT001
        activation_fn: Activation | None = None,
    ) -> list[dict[str, Any]]:
        """The documents best first, each a dict with `corpus_id`, `score` and, if wanted, `text`."""
        found = self._reranker.rank(query, documents, top_k)
        scores = _activated(np.array([doc.score for doc in found], dtype=np.float32), activation_fn).tolist()
        rows = [{"corpus_id": doc.index, "score": score} for doc, score in zip(found, scores, strict=True)]
        if return_documents:
            rows = [{**row, "text": doc.text} for row, doc in zip(rows, found, strict=True)]
        return rows


def _activated(scores: npt.NDArray[np.float32], activation: Activation | None) -> npt.NDArray[np.float32]:
    if activation is None:
        return scores
    import torch

    made: npt.NDArray[np.float32] = activation(torch.from_numpy(scores)).float().cpu().numpy()
    return made


# -- lists -----------------------------------------------------------------------------


def list_qid(query: str, documents: Sequence[str]) -> str:
    """The name under which rules know a list; it sets the seeds of those that shuffle.

    The same texts have the same one, whatever else is in the batch, here and in a server.

    >>> list_qid("rain", ["It rains."]) == list_qid("rain", ["It rains."]) != list_qid("rain", ["It snows."])
    True
    """
    digest = hashlib.sha256()
    for text in query, *documents:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return f"{query[:40]} ({digest.hexdigest()[:16]})"


class _Texts(NamedTuple):
    """What an order depends on."""

    query: str
    documents: tuple[str, ...]


class _List(NamedTuple):
    """One list to rank."""

    texts: _Texts
    docnos: tuple[str, ...]
    explains: bool

    def ranked(
        self, places: Sequence[tuple[int, float]], counts: Mapping[str, int], reasoning: Sequence[Reasoning]
    ) -> RankedDocs:
        """The list in the order of `places`, each with its score."""
        docs = [
            RankedDoc(place, self.docnos[place], score, rank, self.texts.documents[place])
            for rank, (place, score) in enumerate(places, 1)
        ]
        return RankedDocs(self.texts.query, docs, counts, reasoning)


def _check_k(k: int | None) -> None:
    if k is not None and k < 1:
        raise ConfigError(f"k is {k}, at least 1 is needed; leave it out for all documents")


def _listed(query: str, docs: Iterable[Doc], *, explain: bool) -> _List:
    """The list, with every document's id and text."""
    if not isinstance(query, str):
        raise DataError(f"the query is {query!r:.60} ({type(query).__name__}); a text is expected")
    pairs = read_docs(docs)
    return _List(_Texts(query, tuple(text for _, text in pairs)), tuple(docno for docno, _ in pairs), explain)


def read_docs(docs: Iterable[Doc]) -> list[tuple[str, str]]:
    """Id and text of each document.

    Raises:
        DataError: something that is none.

    >>> read_docs(["It rains.", ("d7", "It snows.")])
    [('0', 'It rains.'), ('d7', 'It snows.')]
    """
    if isinstance(docs, str | Mapping):
        raise DataError(f"the documents are one {type(docs).__name__}; a list of documents is expected")
    return [_document(doc, place) for place, doc in enumerate(docs)]


def _document(doc: Doc, place: int) -> tuple[str, str]:
    """Id and text."""
    if isinstance(doc, str):
        return str(place), doc
    if isinstance(doc, Mapping):
        from rerank.data.jsonl import document_of

        document = document_of(doc, f"document {place}", str(place))
        return document.id, document.joined
    if _is_pair(doc):
        return doc[0], doc[1]
    raise DataError(f"document {place} is {doc!r:.60}; a text, a pair (id, text) or a mapping with 'text' is expected")


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _ranking(lists: Sequence[_Texts]) -> Ranking:
    """The lists in the order given; documents are numbered through, so that ids that lists share do not meet."""
    texts = [text for each in lists for text in each.documents]
    corpus = MemoryCorpus({f"{number:09d}": text for number, text in enumerate(texts)})
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(each.documents) for each in lists], out=offsets[1:])
    given = Ranking(
        tuple(list_qid(each.query, each.documents) for each in lists),
        tuple(each.query for each in lists),
        offsets,
        np.arange(len(texts)),
        np.zeros(len(texts), dtype=np.float32),
        corpus.ids,
        source=corpus,
    )
    return given.ranked()


def _places(lists: Sequence[_Texts], ranking: Ranking) -> list[list[tuple[int, float]]]:
    """Per list its documents' places in the list as it was given, best first, with their scores."""
    numbers = [int(docno) for docno in ranking.docnos().tolist()]
    scores, bounds = ranking.scores.tolist(), ranking.offsets.tolist()
    firsts = np.cumsum([0, *(len(each.documents) for each in lists)]).tolist()
    return [
        [(number - first, score) for number, score in zip(numbers[start:stop], scores[start:stop], strict=True)]
        for first, start, stop in zip(firsts, bounds[:-1], bounds[1:], strict=False)
    ]


def _reasoning(lists: Sequence[_Texts], told: Iterable[tuple[Asked, str]]) -> dict[_Texts, list[Reasoning]]:
    """What was written about each list."""
    of_qid = {list_qid(each.query, each.documents): each for each in lists}
    firsts = dict(zip(lists, np.cumsum([0, *(len(each.documents) for each in lists)]).tolist(), strict=False))
    found: dict[_Texts, list[Reasoning]] = {}
    for asked, text in told:
        each = of_qid.get(asked.qid)
        if each is not None:  # a stage may ask about queries of its own
            shown = dict.fromkeys(int(docno) - firsts[each] for docno in asked.docnos)
            found.setdefault(each, []).append(Reasoning(tuple(shown), text))
    return found


# -- printing ----------------------------------------------------------------------------


def _fitted(text: str, columns: int) -> str:
    """The beginning of a text on one line of at most so many columns."""
    from rich.cells import cell_len, set_cell_size

    # Control characters would move the cursor, or worse.
    plain = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * columns]).split())
    if cell_len(plain) <= columns and len(text) <= 4 * columns:
        return plain
    return set_cell_size(plain, max(0, columns - 4)).rstrip() + " ..."
