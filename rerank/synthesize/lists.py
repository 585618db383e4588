"""Lists for queries that were just made: from a pipeline, as no run knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rerank.config import stage_tree
from rerank.data.dataset import Dataset
from rerank.errors import ConfigError
from rerank.ranking import TextSource
from rerank.ready import find_pipeline
from rerank.runtime import Runtime
from rerank.stage import Cut, Pipeline
from rerank.train.lists import Lists, Ranked


@dataclass(frozen=True)
class FreshLists(Lists):
    """Base of what ranks documents for new queries; a subclass says by which ready pipeline unless told.

    Raises:
        ConfigError: a run is given, or more than one pipeline.
    """

    usual: ClassVar[str] = "bm25"
    """The ready pipeline that is taken where none is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run:
            raise ConfigError(
                f"the run {self.run} has no lists for queries that are yet to be written; give a pipeline"
            )

    def made(self) -> Pipeline:
        """The pipeline, named, written here, or the usual one."""
        return super().made() if self.given else find_pipeline(self.usual)

    def content(self) -> Any:
        """Plain data that is equal for equal lists."""
        return {"stages": [stage_tree(stage, hashes=True) for stage in self.made().stages]}

    def found(self, queries: Mapping[str, str], corpus: TextSource, k: int, runtime: Runtime) -> Ranked:
        """The first `k` documents of each query."""
        pipeline = Lists(stages=(*self.made().stages, Cut(k)))
        return pipeline.ranked(Dataset("synthetic", dict(queries), corpus), runtime)
