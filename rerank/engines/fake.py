"""The engine that answers from judgments: for tests, examples and dry runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rerank.config import FilePath
from rerank.engines.engine import Asked, Asker, Engine, Writer, refuse_prompt
from rerank.engines.meter import Meter, by_characters
from rerank.engines.passages import Passages, Span, word_passages
from rerank.errors import ConfigError
from rerank.ranking import ScoreKind
from rerank.rules.judges import FakeJudge, Form
from rerank.rules.rule import Answer, Group, seeded
from rerank.runtime import Runtime


@dataclass(frozen=True, repr=False)
class FakeEngine(Engine):
    """Answers from judgments, well or badly as asked: what a rule would do with a perfect, noisy or broken model.

    Documents without a judgment count as grade 0.  As a writer it repeats the query.
    """

    qrels: FilePath
    """Judgments in TREC's form, or tab-separated with a header as BEIR has them."""
    form: Form = "scores"
    """`scores` are the grades, `order` the places, `pick` says only which is best."""
    noise: float = 0.0
    """Standard deviation of what is added to each grade, anew for each question."""
    garbage: float = 0.0
    """Share of questions that get no usable answer, 0 to 1."""
    seed: int = 0
    """Of noise and garbage."""

    def __post_init__(self) -> None:
        if self.noise < 0 or not 0 <= self.garbage <= 1:
            raise ConfigError(f"fake: noise is {self.noise} (0 or more) and garbage is {self.garbage} (0 to 1)")

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The judgments, read."""
        refuse_prompt(self, prompt)
        from rerank.data.trec import read_qrels

        return _Judgments(self, runtime.resource(("qrels", self.qrels), lambda: read_qrels(Path(self.qrels))))

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """By characters; answers have their form."""
        refuse_prompt(self, prompt)
        return replace(by_characters(None), form=self.form)

    def writer(self, prompt: str, n_texts: int, runtime: Runtime) -> Writer:
        """What writes every query down again; nothing for a share of `garbage`."""
        return _Echo(self, n_texts)


class _Echo:
    def __init__(self, engine: FakeEngine, n_texts: int) -> None:
        self._engine, self._n_texts = engine, n_texts

    def write(self, queries: Sequence[str], runtime: Runtime) -> list[tuple[str, ...]]:
        lost = [seeded(self._engine.seed, query).random() < self._engine.garbage for query in queries]
        return [("" if is_lost else query,) * self._n_texts for query, is_lost in zip(queries, lost, strict=True)]


class _Judgments:
    kind = ScoreKind.UNKNOWN
    most_documents: int | None = None

    def __init__(self, engine: FakeEngine, qrels: Mapping[str, Mapping[str, int]]) -> None:
        self._engine, self._qrels = engine, qrels

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        return [self._answer(asked) for asked in questions]

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return word_passages(texts, passages)

    def _answer(self, asked: Asked) -> Answer:
        engine, judged = self._engine, self._qrels.get(asked.qid, {})
        grades = tuple(float(judged.get(docno, 0)) for docno in asked.docnos)
        seed = int.from_bytes(f"{engine.seed} {asked.qid} {' '.join(asked.docnos)}".encode(), "little")
        judge = FakeJudge(grades, engine.form, engine.noise, garbage=engine.garbage, seed=seed)
        return judge(Group(tuple(range(len(grades)))))
