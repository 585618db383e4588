"""What trials of a model found, remembered on disk: trying a language model takes longer than loading it.

Whether packed batches hold, a 16-bit type keeps rankings and a self-test passes follows from the weights, the device
and the versions of what computes; a result stands for all later processes where these are the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rerank.artifact import fingerprint, write_json

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST = 1_000
"""Results that are kept; the oldest go first."""


class Trials:
    """Results of trials of one subject.

    Args:
        memory: the JSON file that remembers them; None: nothing is remembered.
        subject: what is tried.

    >>> import tempfile
    >>> memory = Path(tempfile.mkdtemp()) / "trials.json"
    >>> Trials(memory, "some model").result("holds", run=lambda: True)
    True
    >>> Trials(memory, "some model").result("holds", run=lambda: False)
    True
    """

    def __init__(self, memory: Path | None = None, *subject: str) -> None:
        self._memory = memory
        self._subject = subject

    def result(self, *what: str, run: Callable[[], T], keep: Callable[[T], bool] = lambda result: True) -> T:
        """What `run` gave for `what` when it was first tried.

        Args:
            what: the trial, and all that it depends on besides the subject and the versions of what computes.
            run: tries it; what it gives is plain data.
            keep: whether a result is remembered; one that a user should hear of each time is not.
        """
        if self._memory is None:
            return run()
        key = fingerprint([*self._subject, *_versions(), *what])
        known = _read(self._memory)
        if key in known:
            found: T = known[key]
            return found
        result = run()
        if keep(result):
            # Another process may have written meanwhile; what it found is tried again at worst.
            known = {**_read(self._memory), key: result}
            try:
                write_json(self._memory, dict(list(known.items())[-_MOST:]))
            except OSError as error:
                logger.debug("%s: trials are not remembered (%s)", self._memory, error)
        return result


def _versions() -> tuple[str, ...]:
    """Of what computes."""
    import torch
    import transformers

    from rerank import __version__

    processor = torch.backends.cpu.get_cpu_capability()
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return __version__, torch.__version__, transformers.__version__, processor, accelerator


def _read(memory: Path) -> dict[str, Any]:
    if not memory.is_file():
        return {}
    try:
        known: dict[str, Any] = dict(json.loads(memory.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError) as error:
        logger.warning("%s: not a memory of trials (%s); models are tried again", memory, error)
        return {}
    return known
