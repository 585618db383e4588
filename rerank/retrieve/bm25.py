"""BM25 as a first stage, on bm25s: every impact is worked out when the index is built, a query sums them."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from rerank.artifact import (
    Draft,
    Manifest,
    canonical_json,
    find_or_build,
    fingerprint,
    new_artifact,
    open_artifact,
    write_text,
)
from rerank.config import FilePath
from rerank.data.corpus import StoredIds, write_ids
from rerank.errors import ArtifactError, ConfigError, CorruptArtifactError
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.retrieve.analysis import Analyser, analyse
from rerank.retrieve.first_stage import excluded_codes, need_source, retrieved
from rerank.retrieve.sparse_index import SparseIndex, SparseQueries, write_sparse_index
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Stage

KIND = "bm25-index"
VERSION = 1
_BATCH = 4096


@dataclass(frozen=True, repr=False)
class BM25(Stage):
    """The `k` documents with the highest BM25 scores; documents that share no term with the query are never given.

    The index is found in the runtime's home by corpus and configuration, and built when it is not there; or it is
    the artifact at `index`, whose own configuration then holds.  Queries are analysed as the index's texts were.

    >>> BM25(k=100, k1=1.2, b=0.75)
    BM25(k=100, k1=1.2, b=0.75)

    Source: Robertson and Zaragoza 2009; the variants as in Kamphuis et al. 2020 and Lv and Zhai 2011.
    """

    k: int = 1000
    """How many documents a query gets at most."""
    k1: float = 0.9
    """How soon repeated terms stop counting; 0.9 with b 0.4 is the usual setting for passages."""
    b: float = 0.4
    """How much long documents are discounted, 0 to 1."""
    method: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"] = "lucene"
    """Which formula of the family, as bm25s has it.

    In bm25l and bm25+ bm25s gives every document a constant for the query's terms that it lacks; it is left out here,
    which changes no order.
    """
    delta: float = 0.5
    """The lower bound's size in bm25l and bm25+, where in bm25+ it is all in that constant; unused by the others."""
    analyser: Analyser | None = None
    """How text becomes terms; by default the corpus language's own analyser."""
    index: FilePath | None = None
    """An index artifact made by `rerank index`, instead of one in the runtime's home."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})
    kind: ClassVar[ScoreKind | None] = ScoreKind.BM25

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"bm25: k is {self.k}, at least 1 is needed")
        if not (0 <= self.k1 < math.inf and 0 <= self.b <= 1 and 0 <= self.delta < math.inf):
            raise ConfigError(
                f"bm25: k1 is {self.k1} (0 or more), b is {self.b} (0 to 1), delta is {self.delta} (0 or more)"
            )
        if self.index is not None:
            made = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("k", "index")}
            changed = [f.name for f in dataclasses.fields(self) if f.name in made and made[f.name] != f.default]
            if changed:
                raise ConfigError(f"bm25: {', '.join(changed)} cannot be set beside index, which carries its own")

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The best documents of each query."""
        index = self.open(ranking, runtime)
        runtime.note("bm25", index.settings)
        source = ranking.source
        if source is not None and source.ids.fingerprint != index.ids.fingerprint:
            raise ArtifactError(f"{index.folder}: was built from another corpus than the data set's; build it again")
        queries = index.queries(ranking)
        found = index.matrix.search(queries, self.k, excluded_codes(ranking, index.ids, runtime), runtime.threads)
        return retrieved(ranking, found, self.k, ScoreKind.BM25, index.ids if source is None else source.ids, source)

    def open(self, ranking: Ranking, runtime: Runtime) -> BM25Index:
        """The index for the corpus of `ranking`, built first where need be."""
        if self.index is not None:
            folder = Path(self.index)
            return runtime.resource(
                ("bm25", str(folder)), lambda: BM25Index(folder, open_artifact(folder, KIND, VERSION))
            )
        corpus = need_source(ranking, self.label)
        key = self.fingerprint(corpus)
        folder = runtime.home / "indexes" / f"bm25-{key[:32]}"

        def load() -> BM25Index:
            manifest = find_or_build(folder, KIND, VERSION, key, lambda draft: self.write(draft, corpus, runtime))
            return BM25Index(folder, manifest)

        return runtime.resource(("bm25", key), load)

    def build(self, corpus: TextSource, folder: Path, runtime: Runtime) -> BM25Index:
        """Builds the index as an artifact of its own at `folder`."""
        with new_artifact(folder, KIND, VERSION, self.fingerprint(corpus)) as draft:
            self.write(draft, corpus, runtime)
        return BM25Index(folder, open_artifact(folder, KIND, VERSION))

    def fingerprint(self, corpus: TextSource) -> str:
        """What identifies the index of `corpus` under this configuration."""
        return fingerprint([KIND, VERSION, corpus.fingerprint, self.settings(corpus)])

    def settings(self, corpus: TextSource) -> dict[str, Any]:
        """The configuration of the index with every automatic choice resolved."""
        analyser = (self.analyser or Analyser(corpus.language)).resolve()
        return {
            "method": self.method,
            "k1": float(self.k1),
            "b": float(self.b),
            "delta": float(self.delta) if self.method in ("bm25l", "bm25+") else None,
            "analyser": dataclasses.asdict(analyser),
            "analyser_versions": analyser.versions(),
        }

    def write(self, draft: Draft, corpus: TextSource, runtime: Runtime) -> None:
        """Analyses the corpus and writes the index into `draft`."""
        import bm25s
        from scipy.sparse import csc_array

        settings = self.settings(corpus)
        total = len(corpus.ids)
        with runtime.progress("indexing", total, "documents") as advance:

            def texts() -> Any:
                for start in range(0, total, _BATCH):
                    batch = corpus.texts(np.arange(start, min(start + _BATCH, total)))
                    advance(len(batch))
                    yield from batch

            terms = analyse(texts(), _analyser(settings))
        scorer = bm25s.BM25(k1=self.k1, b=self.b, delta=self.delta, method=self.method, backend="numpy")
        if len(terms.ids):
            vocabulary = {term: code for code, term in enumerate(terms.vocabulary)}
            rows = [row.tolist() for row in terms]
            scorer.index((rows, vocabulary), create_empty_token=False, show_progress=False)
            parts = (scorer.scores["data"], scorer.scores["indices"], scorer.scores["indptr"])
        else:
            parts = (np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64))
        write_sparse_index(draft.path, csc_array(parts, shape=(total, len(terms.vocabulary))))
        write_text(draft.path / "vocabulary.json", json.dumps(terms.vocabulary, ensure_ascii=True))
        table = write_ids(draft.path, [str(docno) for docno in corpus.ids.take(np.arange(total))])
        draft.config.update(settings, ids=table, corpus=corpus.fingerprint, documents=total, language=corpus.language)


class BM25Index:
    """An open index: impacts, vocabulary, ids and the analyser that made them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        try:
            self.settings = {key: manifest.config[key] for key in ("method", "k1", "b", "delta", "analyser")}
            self.analyser = _analyser(manifest.config)
            rules, table = manifest.config["analyser_versions"]["rules"], manifest.config["ids"]
            terms: list[str] = json.loads((folder / "vocabulary.json").read_bytes())
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            message = f"{folder}: its configuration or vocabulary cannot be read ({error}); build it again"
            raise CorruptArtifactError(message) from error
        if self.analyser.versions()["rules"] != rules:
            raise ArtifactError(f"{folder}: was made by another version of the text analysis; build the index again")
        self.matrix = SparseIndex.open(folder)
        self.ids = StoredIds(folder, table)
        self.vocabulary = dict(zip(terms, range(len(terms)), strict=True))
        if len(terms) != self.matrix.n_terms or len(self.ids) != self.matrix.n_documents:
            raise CorruptArtifactError(f"{folder}: vocabulary, ids and impacts do not fit each other; build it again")

    def queries(self, ranking: Ranking) -> SparseQueries:
        """The queries of `ranking` as terms of this index; weighted where a stage left the column `terms`."""
        get = self.vocabulary.get
        weighted = ranking.query_columns.get("terms")
        if weighted is None:
            return SparseQueries.of(
                [[code for t in self.analyser(query) if (code := get(t)) is not None] for query in ranking.queries]
            )
        own = canonical_json(self.settings["analyser"])
        for used in ranking.query_columns["terms_analyser"][:1]:
            if used != own:
                raise ConfigError(f"bm25: the index analyses text as {own}, but the weighted terms were made by {used}")
        known = [[(code, weight) for term, weight in pairs if (code := get(term)) is not None] for pairs in weighted]
        return SparseQueries.of([[c for c, _ in query] for query in known], [[w for _, w in query] for query in known])


def _analyser(config: Any) -> Analyser:
    """The analyser that an index's configuration describes."""
    stored = config["analyser"]
    return Analyser(**{**stored, "stop_words": tuple(stored["stop_words"])})
