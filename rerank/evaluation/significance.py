"""Paired tests, corrections, intervals and effect sizes over per-query values.

Everything here works on float64 arrays with one value per query, the same queries in the same places for
every system. Two values count as equal where they differ by no more than rounding, so that `0.1 + 0.2`
against `0.3` is a tie and not a win, and so that no p-value depends on the order in which the queries were
summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rerank.errors import DataError, UnknownNameError, nearest

FloatArray: TypeAlias = npt.NDArray[np.float64]
TestName: TypeAlias = Literal["randomisation", "t"]

# Relative to the values compared: far above what float64 arithmetic leaves behind, far below any difference
# between two values that a measure tells apart.
_ROUNDING = 1e-12

# Memory for the patterns or resamples that are held at once.
_CHUNK_BYTES = 1 << 23


class Interval(NamedTuple):
    """A closed interval.

    >>> Interval(0.31, 0.36).low
    0.31
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system against the baseline, for one measure on one set of queries.

    `difference` is `mean_system - mean_baseline`, and `effect_size` and `interval` have its sign;
    `interval` is the bootstrap interval of the difference. `p_holm` is `p_value` corrected for the systems
    compared with the same baseline (see `compare_all`). `wins`, `ties` and `losses` count queries, seen
    from the system.

    >>> comparison = compare_all({"a": np.array([0.2, 0.4]), "b": np.array([0.3, 0.4])}, "a")["b"]
    >>> comparison.wins, comparison.ties, comparison.losses, comparison.n_queries
    (1, 1, 0, 2)
    """

    baseline: str
    system: str
    mean_baseline: float
    mean_system: float
    difference: float
    interval: Interval
    p_value: float
    p_holm: float
    test: TestName
    effect_size: float
    wins: int
    ties: int
    losses: int

    @property
    def n_queries(self) -> int:
        """Number of queries that both systems were measured on."""
        return self.wins + self.ties + self.losses


def randomisation_test(a: FloatArray, b: FloatArray, *, n_permutations: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value, in (0, 1], of Fisher's paired randomisation test on the mean difference.

    Under the null hypothesis the two systems are exchangeable on every query, so every difference could as
    well have had the other sign. All sign patterns are enumerated where there are at most `n_permutations`
    of them (the p-value is then exact); otherwise `n_permutations` random ones are drawn, and the p-value
    is `(hits + 1) / (n_permutations + 1)`, which is never 0 and never too small. Queries without a
    difference have no influence. The result depends neither on the order of the queries nor on which system
    comes first.

    Raises:
        DataError: the arrays are empty, differ in length, or hold a NaN or an infinity.

    Source: Fisher, The Design of Experiments (1935); Smucker, Allan and Carterette, CIKM 2007; the estimate
    is that of Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010).

    >>> randomisation_test(np.array([0.5, 0.6, 0.9]), np.array([0.4, 0.4, 0.6]))
    0.25
    """
    if n_permutations < 1:
        message = f"n_permutations must be at least 1, got {n_permutations}"
        raise DataError(message)
    differences, rounding = _paired_differences(a, b)
    # Sorted, so that the order of the queries decides nothing.
    magnitudes = np.sort(np.abs(differences[differences != 0.0]))
    observed = abs(math.fsum(differences))
    threshold = observed - rounding
    tables = _sign_tables(magnitudes)
    exact = magnitudes.size < 64 and 1 << magnitudes.size <= n_permutations
    n_patterns = 1 << magnitudes.size if exact else n_permutations
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_BYTES // max(8, len(tables)))
    hits = 0
    for start in range(0, n_patterns, chunk):
        stop = min(start + chunk, n_patterns)
        if exact:
            # Pattern number i flips the signs that are set in the binary form of i.
            patterns = np.arange(start, stop, dtype="<u8").view(np.uint8).reshape(-1, 8).T[: len(tables)]
        else:
            patterns = rng.integers(0, 256, size=(len(tables), stop - start), dtype=np.uint8)
        hits += int(np.count_nonzero(np.abs(_flipped_sums(tables, patterns)) >= threshold))
    return hits / n_patterns if exact else (hits + 1) / (n_patterns + 1)


def t_test(a: FloatArray, b: FloatArray) -> float:
    """Two-sided p-value of Student's paired t-test on the mean difference, never NaN.

    Where the statistic does not exist the p-value is its limit: 1 if no query differs, 0 if all differ by
    the same amount. A single query leaves no degree of freedom and is no evidence: 1.

    Raises:
        DataError: the arrays are empty, differ in length, or hold a NaN or an infinity.

    Source: Student, Biometrika 6 (1908).

    >>> round(t_test(np.array([0.5, 0.6, 0.9]), np.array([0.4, 0.4, 0.6])), 4)
    0.0742
    >>> t_test(np.array([0.5, 0.6]), np.array([0.5, 0.6]))
    1.0
    """
    differences, rounding = _paired_differences(a, b)
    n_queries = differences.size
    mean, spread = _mean_and_spread(differences, rounding)
    if mean == 0.0 or n_queries == 1:
        return 1.0
    if spread == 0.0:
        return 0.0
    from scipy.special import stdtr

    return min(1.0, 2.0 * float(stdtr(n_queries - 1, -abs(mean) / spread * math.sqrt(n_queries))))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values adjusted for testing all of them, in the order given, each at least the raw one and at most 1.

    Rejecting where the adjusted value is at most alpha keeps the chance of even one false rejection in the
    family at most alpha, whatever the dependence between the tests.

    Raises:
        DataError: a value is not in [0, 1].

    Source: Holm, Scand. J. Statist. 6 (1979).

    >>> holm([0.01, 0.04, 0.03])
    (0.03, 0.06, 0.06)
    """
    for index, p_value in enumerate(p_values):
        if not 0.0 <= p_value <= 1.0:
            message = f"p-value {index} is {p_value}: a p-value lies between 0 and 1"
            raise DataError(message)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for n_rejected, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - n_rejected) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def bootstrap_interval(
    values: FloatArray, *, level: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap confidence interval of the mean over queries (bias-corrected and accelerated, BCa).

    Give per-query values for the interval of a mean, or per-query differences for the interval of a
    difference. Values that are all equal, a single one among them, show no spread: the interval is then the
    mean itself. The result does not depend on the order of the queries, and always contains the mean.

    Raises:
        DataError: there are no values, one is NaN or infinite, or `level` is not between 0 and 1.

    Source: Efron, J. Am. Stat. Assoc. 82 (1987); the formulas are in Efron and Tibshirani, An Introduction
    to the Bootstrap (1993), section 14.3. Resamples that equal the observed mean count one half in the bias
    correction, which matters where a measure takes few values, such as success at 1.

    >>> low, high = bootstrap_interval(np.array([0.1, 0.2, 0.4, 0.5, 0.6, 0.9]))
    >>> round(low, 2), round(high, 2)
    (0.25, 0.68)
    """
    if not 0.0 < level < 1.0:
        message = f"the level of an interval lies between 0 and 1 (0.95 for 95 %), got {level}"
        raise DataError(message)
    if n_resamples < 1:
        message = f"n_resamples must be at least 1, got {n_resamples}"
        raise DataError(message)
    ordered = np.sort(_per_query(values, "values"))
    mean = math.fsum(ordered) / ordered.size
    rounding = _ROUNDING * float(np.abs(ordered).max())
    if ordered[-1] - ordered[0] <= rounding:
        return Interval(mean, mean)
    means = _resampled_means(ordered, n_resamples, seed)
    below = np.count_nonzero(means < mean - rounding) + np.count_nonzero(means <= mean + rounding)
    share_below = float(below) / (2 * n_resamples)
    from scipy.special import ndtr, ndtri

    # A share of 0 or 1, which only a handful of resamples can give, would make the correction infinite.
    bias = float(ndtri(min(max(share_below, 1 / (n_resamples + 1)), n_resamples / (n_resamples + 1))))
    # For a mean the jackknife's deviations are the values' own, up to a factor that cancels.  Scaled, so that
    # the powers of very small values do not vanish.
    deviations = (ordered - mean) / np.abs(ordered - mean).max()
    acceleration = float((deviations**3).sum() / (6.0 * (deviations**2).sum() ** 1.5))
    tail = float(ndtri((1.0 - level) / 2.0))
    normal = bias + np.array([tail, -tail])
    # The map has a pole at acceleration * normal = 1, beyond any level in use: past it the share is 0 or 1.
    shares = ndtr(bias + normal / np.maximum(1.0 - acceleration * normal, 1e-9))
    low, high = np.quantile(means, shares)
    return Interval(min(float(low), mean), max(float(high), mean))


def effect_size(a: FloatArray, b: FloatArray) -> float:
    """Cohen's d for paired samples: the mean of `a - b` in units of the standard deviation of `a - b`.

    0 where no query differs. Where all queries differ by the same amount (one query alone does) the deviation
    is 0, and the effect is an infinity with the sign of the difference.

    Raises:
        DataError: the arrays are empty, differ in length, or hold a NaN or an infinity.

    Source: Cohen, Statistical Power Analysis (1988), chapter 2 (d_z).

    >>> round(effect_size(np.array([0.5, 0.6, 0.9]), np.array([0.4, 0.4, 0.6])), 6)
    2.0
    """
    differences, rounding = _paired_differences(a, b)
    mean, spread = _mean_and_spread(differences, rounding)
    if mean == 0.0:
        return 0.0
    return math.copysign(math.inf, mean) if spread == 0.0 else mean / spread


def compare_all(
    systems: Mapping[str, FloatArray],
    baseline: str,
    *,
    test: TestName = "randomisation",
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Every system but the baseline, compared with the baseline, in the order given.

    `systems` holds the per-query values of one measure on one set of queries. The family that Holm's
    correction covers is exactly the comparisons returned: all systems against one baseline, for this
    measure and these queries. Several measures or several data sets are several families, each corrected by
    itself.

    Raises:
        UnknownNameError: the baseline is not one of the systems, or no test has that name.
        DataError: a system's values are empty, not finite, or not as many as the baseline's.

    >>> found = compare_all(
    ...     {
    ...         "bm25": np.array([0.2, 0.4, 0.6]),
    ...         "dense": np.array([0.3, 0.6, 0.9]),
    ...         "rrf": np.array([0.3, 0.4, 0.5]),
    ...     },
    ...     "bm25",
    ... )
    >>> found["dense"].p_value, found["dense"].p_holm, round(found["dense"].difference, 2)
    (0.25, 0.5, 0.2)
    """
    if baseline not in systems:
        message = f"baseline {baseline!r} is not among the systems compared{nearest(baseline, systems)}"
        raise UnknownNameError(message)
    tests: dict[str, Callable[[FloatArray, FloatArray], float]] = {
        "randomisation": lambda a, b: randomisation_test(a, b, seed=seed),
        "t": t_test,
    }
    if test not in tests:
        message = f"no significance test is called {test!r}{nearest(test, tests)} (known: {', '.join(tests)})"
        raise UnknownNameError(message)
    base = _per_query(systems[baseline], f"baseline {baseline!r}")
    others: dict[str, FloatArray] = {}
    for name, values in systems.items():
        if name != baseline:
            others[name] = _per_query(values, f"system {name!r}")
            if others[name].size != base.size:
                message = (
                    f"system {name!r} has values for {others[name].size} queries, baseline {baseline!r} for "
                    f"{base.size}: give both the same queries in the same order"
                )
                raise DataError(message)
    p_values = [tests[test](values, base) for values in others.values()]
    found = {}
    for (name, values), p_value, p_holm in zip(others.items(), p_values, holm(p_values), strict=True):
        differences, _ = _paired_differences(values, base)
        wins = int(np.count_nonzero(differences > 0.0))
        losses = int(np.count_nonzero(differences < 0.0))
        found[name] = Comparison(
            baseline=baseline,
            system=name,
            mean_baseline=math.fsum(base) / base.size,
            mean_system=math.fsum(values) / values.size,
            difference=math.fsum(differences) / differences.size,
            interval=bootstrap_interval(differences, level=level, seed=seed),
            p_value=p_value,
            p_holm=p_holm,
            test=test,
            effect_size=effect_size(values, base),
            wins=wins,
            ties=differences.size - wins - losses,
            losses=losses,
        )
    return found


def order_by_change(differences: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Indices of the at most `k` queries that moved most, in either direction, the largest move first.

    Equal moves keep the order of the queries.

    Raises:
        DataError: a difference is NaN or infinite, or `k` is negative.

    >>> order_by_change(np.array([0.1, -0.5, 0.0, 0.5]), 3)
    array([1, 3, 0])
    """
    if k < 0:
        message = f"k must be at least 0, got {k}"
        raise DataError(message)
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        return np.empty(0, dtype=np.int64)
    return np.argsort(-np.abs(_per_query(values, "differences")), kind="stable")[:k].astype(np.int64)


def _per_query(values: FloatArray, name: str) -> FloatArray:
    """`values` as float64 [queries], at least one and all finite, or an error that says which is not."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        message = f"{name}: expected one value for each of at least one query, got shape {array.shape}"
        raise DataError(message)
    finite = np.isfinite(array)
    if not finite.all():
        index = int(np.argmin(finite))
        message = f"{name}: the value of query {index} is {array[index]}; give every query a finite value"
        raise DataError(message)
    return array


def _paired_differences(a: FloatArray, b: FloatArray) -> tuple[FloatArray, float]:
    """`a - b` with differences of mere rounding set to 0, and the rounding to expect in its sum."""
    left, right = _per_query(a, "a"), _per_query(b, "b")
    if left.size != right.size:
        message = f"a has {left.size} values, b has {right.size}: give both the same queries in the same order"
        raise DataError(message)
    rounding = _ROUNDING * np.maximum(np.abs(left), np.abs(right))
    differences = left - right
    differences[np.abs(differences) <= rounding] = 0.0
    return differences, math.fsum(rounding)


def _mean_and_spread(differences: FloatArray, rounding: float) -> tuple[float, float]:
    """Mean and sample standard deviation of the differences, each exactly 0 where it is only rounding."""
    n_queries = differences.size
    mean = math.fsum(differences) / n_queries
    if abs(mean) <= rounding / n_queries:
        mean = 0.0
    if np.ptp(differences) <= rounding / n_queries:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((differences - mean) ** 2) / (n_queries - 1))


def _sign_tables(magnitudes: FloatArray) -> FloatArray:
    """Sums float64 [ceil(magnitudes / 8), 256] of eight magnitudes each, under every pattern of signs."""
    eights = np.zeros((-(-magnitudes.size // 8), 8))
    eights.flat[: magnitudes.size] = magnitudes
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    tables: FloatArray = eights @ (1.0 - 2.0 * bits.T)
    return tables


def _flipped_sums(tables: FloatArray, patterns: npt.NDArray[np.uint8]) -> FloatArray:
    """Sums float64 [patterns] under sign patterns uint8 [bytes, patterns]: a look-up per eight magnitudes."""
    sums = np.zeros(patterns.shape[1])
    for table, column in zip(tables, patterns, strict=True):
        sums += table[column]
    return sums


def _resampled_means(values: FloatArray, n_resamples: int, seed: int) -> FloatArray:
    """Means of `n_resamples` samples of the values, drawn with replacement and of the same size."""
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    chunk = max(1, _CHUNK_BYTES // (8 * values.size))
    for start in range(0, n_resamples, chunk):
        stop = min(start + chunk, n_resamples)
        means[start:stop] = values.take(rng.integers(0, values.size, size=(stop - start, values.size))).mean(axis=1)
    return means
