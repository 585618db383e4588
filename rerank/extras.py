"""The one door to optional packages: imported on first use, refused with the command that installs them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from rerank.errors import MissingExtraError


def need(package: str, extra: str, purpose: str) -> Any:
    """The imported module `package`.

    Raises:
        MissingExtraError: it is not installed; the message names the extra that brings it.
    """
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        raise MissingExtraError(package, extra, purpose)
    return importlib.import_module(package)
