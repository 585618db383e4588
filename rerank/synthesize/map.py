"""Documents on a plane: chosen ones over all others, coloured by cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rerank.synthesize.clusters import unit

if TYPE_CHECKING:
    from rerank.synthesize.duqgen import Picked

_SHOWN = 2000
"""Documents of each sort that are drawn at most."""
_SIDE, _EDGE = 640.0, 16.0
_LEARNT_FROM = 20_000


def cluster_map(picked: Picked, seed: int) -> str:
    """An SVG drawing of the clean documents by the two directions in which their vectors differ most; "" without any.

    Chosen documents are coloured by their cluster (neighbouring numbers have unlike colours), others are grey.
    """
    if picked.vectors is None or picked.clusters is None:
        return ""
    random = np.random.default_rng(seed)
    n = len(picked.clean.codes)
    others = np.sort(random.permutation(n)[:_SHOWN])
    chosen = np.array(picked.places, dtype=np.int64)
    chosen = np.sort(random.permutation(chosen)[:_SHOWN])
    learnt = np.sort(random.permutation(n)[:_LEARNT_FROM])
    sample = unit(picked.vectors[picked.clean.codes[learnt]]).astype(np.float64)
    mean = sample.mean(axis=0)
    _, _, axes = np.linalg.svd((sample - mean).T @ (sample - mean))
    # The sign of a direction means nothing; its largest part is made positive.
    axes = axes[:2] * np.sign(axes[:2][np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]

    def places(some: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        flat = (unit(picked.vectors[picked.clean.codes[some]]).astype(np.float64) - mean) @ axes.T  # type: ignore[index]
        return flat if flat.shape[1] == 2 else np.column_stack([flat, np.zeros(len(flat))])

    grey, coloured = places(others), places(chosen)
    every = np.concatenate([grey, coloured])
    low, span = every.min(axis=0), np.maximum(np.ptp(every, axis=0), 1e-9)

    def dots(points: npt.NDArray[np.float64], colours: list[str], radius: float) -> list[str]:
        scaled = _EDGE + (points - low) / span * (_SIDE - 2 * _EDGE)
        return [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'
            for (x, y), colour in zip(scaled.tolist(), colours, strict=True)
        ]

    labels = picked.clusters.labels[chosen].tolist()
    hues = [f"hsl({label * 137.508 % 360:.0f} 65% 45%)" for label in labels]
    parts = [*dots(grey, ["#c9cdd4"] * len(grey), 1.5), *dots(coloured, hues, 3.0)]
    title = f"{len(chosen):,} chosen documents of {n:,}, in {len(picked.clusters):,} clusters"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE:.0f} {_SIDE:.0f}" role="img">\n'
        f"<title>{title}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )
