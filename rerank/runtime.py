"""The one owner of state: cache folder, loaded models and indexes, devices, threads, progress, statistics.

Stages are values; whatever is heavy or stateful lives here and goes when the runtime closes.  The command line, a
notebook and a server each own one.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from rerank.artifact import cache_home
from rerank.extras import need
from rerank.ranking import Ranking
from rerank.run import Run, StageStats

if TYPE_CHECKING:
    from rich.progress import Progress

    from rerank.engines.cache import RequestCache
    from rerank.engines.engine import Asked

logger = logging.getLogger(__name__)
T = TypeVar("T")

_current: contextvars.ContextVar[Runtime | None] = contextvars.ContextVar("rerank_runtime", default=None)


class Transform(Protocol):
    """What the runtime needs to know of a stage."""

    @property
    def label(self) -> str:
        """The short name that statistics and progress bars show."""
        ...

    def fits(self, ranking: Ranking) -> None:
        """Raises a `PipelineError` when the stage cannot start from `ranking`."""
        ...

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The ranking that the stage makes of `ranking`."""
        ...

    def __hash__(self) -> int: ...


class JointTransform(Transform, Protocol):
    """A stage that can work side by side with others of its class."""

    def transform_together(
        self, stages: Sequence[Any], ranking: Ranking, runtime: Runtime
    ) -> list[tuple[Ranking, dict[str, int]]]:
        """What each of `stages` makes of `ranking`, and its own counts."""
        ...


class Topics(Protocol):
    """What the runtime needs to know of a data set."""

    def topics(self) -> Ranking:
        """The queries, with candidates where the data set has them."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Name, split and content hash."""
        ...


def cpu_budget() -> int:
    """How many processors this process may use: its affinity and its control group's quota, whichever is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text(encoding="ascii").partition(" ")
        if limit != "max":
            cores = min(cores, max(1, int(int(limit) / int(period))))
    return max(1, cores)


class _Remembered(NamedTuple):
    """What a shared stage gave, with its input, whose identity must last as long as the memory of it."""

    given: Ranking
    result: Ranking
    stats: list[StageStats]
    facts: dict[str, Any]


class Runtime:
    """State for a while: use it as a context manager, and what it loaded is freed at its end.

    Args:
        home: the cache root for indexes, vectors, corpora and models; default `RERANK_HOME` or the XDG cache.
        device: `auto` (an accelerator where there is one), `cpu`, `cuda`, `cuda:1`, ...
        threads: default the processors that the process may use.
        progress: bars on standard error; default only when that is a terminal.
        capacity: how many models and indexes stay loaded; the least recently used goes first.
        cache: whether what engines answer is kept under `home`, and not asked again.

    >>> with Runtime(progress=False) as runtime:
    ...     Runtime.current() is runtime
    True
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        progress: bool | None = None,
        capacity: int = 32,
        cache: bool = True,
    ) -> None:
        self.home = Path(home) if home is not None else cache_home()
        self.threads = threads or cpu_budget()
        self.stats: list[StageStats] = []
        self._device = device
        self._resources: OrderedDict[Hashable, Any] = OrderedDict()
        self._capacity = capacity
        self._caches = cache
        self._requests: RequestCache | None = None
        self._show = sys.stderr.isatty() if progress is None else progress
        self._bars: Progress | None = None
        self._path: list[str] = []
        self._counts: list[dict[str, int]] = []
        self._written: list[list[tuple[Asked, str]]] = []
        self._borrowed: list[float] = []
        self._loading = 0.0
        self._is_loading = False
        self._facts: dict[str, Any] = {}
        self._shared: frozenset[Transform] = frozenset()
        self._together: dict[Transform, tuple[JointTransform, ...]] = {}
        self._memory: dict[tuple[Transform, int], _Remembered] = {}
        self._tokens: list[contextvars.Token[Runtime | None]] = []

    # -- life ------------------------------------------------------------

    def __enter__(self) -> Runtime:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())
        if not self._tokens:
            self.close()

    def close(self) -> None:
        """Frees everything that was loaded."""
        self._resources.clear()
        self._memory.clear()
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @staticmethod
    @contextlib.contextmanager
    def current_or_new() -> Iterator[Runtime]:
        """The runtime of the enclosing `with`, else one that lives for this block."""
        active = _current.get()
        if active is not None:
            yield active
        else:
            with Runtime() as runtime:
                yield runtime

    @staticmethod
    def current() -> Runtime | None:
        """The runtime of the enclosing `with`, if any."""
        return _current.get()

    # -- resources ------------------------------------------------------------

    @property
    def device(self) -> str:
        """The torch device that engines use, `auto` resolved."""
        if self._device == "auto":
            torch = need("torch", "dense", "choosing a device")
            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        return self._device

    @property
    def requests(self) -> RequestCache | None:
        """What engines answered before; None where nothing is to be kept, or cannot be."""
        if self._requests is None and self._caches:
            from rerank.engines.cache import open_cache

            self._requests = open_cache(self.home / "requests")
            self._caches = self._requests is not None
        return self._requests

    def resource(self, key: Hashable, load: Callable[[], T]) -> T:
        """What `load` gave for `key`, loaded at most once while it stays among the most recently used."""
        if key in self._resources:
            self._resources.move_to_end(key)
            found: T = self._resources[key]
            return found
        loaded = self.timed(load)
        self._resources[key] = loaded
        while len(self._resources) > self._capacity:
            self._resources.popitem(last=False)
        return loaded

    def forget(self, key: Hashable) -> None:
        """Lets go of what was loaded for `key`."""
        self._resources.pop(key, None)

    def timed(self, load: Callable[[], T]) -> T:
        """What `load` gives; its time counts as loading, once where one resource loads another."""
        if self._is_loading:
            return load()
        self._is_loading, started = True, time.perf_counter()
        try:
            return load()
        finally:
            self._is_loading = False
            self._loading += time.perf_counter() - started

    # -- running ------------------------------------------------------------

    def run(self, pipeline: Transform, data: Topics, name: str | None = None) -> Run:
        """The run of `pipeline` over the queries of `data`.

        Raises:
            PipelineError: the pipeline starts from lists, and the data set has no candidates.
        """
        self.stats.clear()
        self._facts.clear()
        topics = data.topics()
        pipeline.fits(topics)
        ranking = self.rank(pipeline, topics)
        provenance = {"data": data.provenance(), "pipeline": repr(pipeline), **self._facts}
        return Run(name or pipeline.label, ranking, provenance, tuple(self.stats))

    def rank(self, stage: Transform, ranking: Ranking) -> Ranking:
        """What `stage` makes of `ranking`; its time and counts go into `stats`."""
        key = (stage, id(ranking))
        if key in self._memory:
            done = self._memory[key]
            prefix = "/".join(self._path)
            self.stats.extend(replace(s, stage=f"{prefix}/{s.stage}" if prefix else s.stage) for s in done.stats)
            self._facts.update(done.facts)
            if self._borrowed:
                self._borrowed[-1] += done.stats[0].seconds
            return done.result
        if stage in self._together:
            self._rank_together(stage, ranking)
            return self.rank(stage, ranking)
        self._path.append(stage.label)
        self._counts.append({})
        self._borrowed.append(0.0)
        outer, self._facts = self._facts, {}
        first, started, loading = len(self.stats), time.perf_counter(), self._loading
        try:
            result = self._made(stage, ranking)
        finally:
            name = "/".join(self._path)
            self._path.pop()
            counts = self._counts.pop()
            borrowed = self._borrowed.pop()
            facts, self._facts = self._facts, {**outer, **self._facts}
        if self._borrowed:
            self._borrowed[-1] += borrowed
        loading = self._loading - loading
        seconds = time.perf_counter() - started - loading + borrowed
        self.stats.insert(first, StageStats(name, seconds, len(result), len(result.docs), counts, loading))
        if stage in self._shared:
            cut = len("/".join(self._path)) + 1 if self._path else 0
            stats = [replace(s, stage=s.stage[cut:], shared=True) for s in self.stats[first:]]
            self._memory[key] = _Remembered(ranking, result, stats, facts)
        return result

    def _rank_together(self, stage: Transform, ranking: Ranking) -> None:
        """Remembers what `stage`, and the stages that share its batches, make of `ranking`.

        Time is divided by how many documents each of them showed; what the model counts is told of all together.
        """
        stages = self._together[stage]
        outer, self._facts = self._facts, {}
        started, loading = time.perf_counter(), self._loading
        try:
            with self.counting() as common:
                made = stages[0].transform_together(stages, ranking, self)
        finally:
            facts, self._facts = self._facts, outer
        loading = self._loading - loading
        taken = time.perf_counter() - started
        if self._borrowed:  # each stage's share is borrowed when it is asked for
            self._borrowed[-1] -= taken - loading
        shown = [counts.get("documents shown", 0) for _, counts in made]
        for each, (result, counts), part in zip(stages, made, shown, strict=True):
            share = part / sum(shown) if sum(shown) else 1 / len(stages)
            told = {f"{what} ({len(stages)} stages)": number for what, number in common.items()}
            stats = StageStats(
                each.label, (taken - loading) * share, len(result), len(result.docs), {**counts, **told}, shared=True
            )
            self._memory[each, id(ranking)] = _Remembered(ranking, result, [stats], facts)

    def _made(self, stage: Transform, ranking: Ranking) -> Ranking:
        return stage.transform(ranking, self)

    def count(self, what: str, number: int) -> None:
        """Adds to a count of the running stage, e.g. `count("truncated documents", 3)`."""
        if number and self._counts:
            self._counts[-1][what] = self._counts[-1].get(what, 0) + int(number)

    @contextlib.contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """What is counted inside the block, which the running stage is not told."""
        self._counts.append({})
        try:
            yield self._counts[-1]
        finally:
            self._counts.pop()

    def explain(self, asked: Asked, text: str) -> None:
        """Tells what a model wrote when it was asked, where somebody listens."""
        if self._written:
            self._written[-1].append((asked, text))

    @contextlib.contextmanager
    def explaining(self) -> Iterator[list[tuple[Asked, str]]]:
        """What models write inside the block: each question, as it was asked, with all that answered it.

        A question that is asked several times, for the mean of its answers, is there as often.
        """
        self._written.append([])
        try:
            yield self._written[-1]
        finally:
            self._written.pop()

    def note(self, fact: str, value: Any) -> None:
        """Writes a resolved fact (a model's revision, a type chosen by `auto`) into the run's provenance.

        A second value of a fact, from another stage of the kind, stands beside the first under a number.
        """
        name, number = fact, 1
        while self._facts.get(name, value) != value:
            number += 1
            name = f"{fact} ({number})"
        self._facts[name] = value

    @contextlib.contextmanager
    def sharing(self, stages: Iterable[Transform], together: Iterable[Sequence[JointTransform]] = ()) -> Iterator[None]:
        """While the block runs, a stage of `stages` given the same ranking again answers from memory.

        Args:
            stages: those that are remembered.
            together: stages of one class: when one of them is given a ranking, all of them work on it at once.
        """
        before, self._shared = self._shared, frozenset(stages)
        self._together = {stage: tuple(some) for some in together for stage in some}
        try:
            yield
        finally:
            self._shared = before
            self._together = {}
            self._memory.clear()

    # -- progress ------------------------------------------------------------

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """A bar for long work; yields `advance(n)`.  Nothing is drawn where standard error is no terminal."""
        if not self._show:
            yield lambda n: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
        bars = self._bars
        bars.start()
        task = bars.add_task(title, total=total, unit=unit)
        try:
            yield lambda n: bars.advance(task, n)
        finally:
            bars.remove_task(task)
            if not bars.task_ids:
                bars.stop()
