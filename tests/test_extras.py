"""Optional packages: imported when needed, refused with the command that installs them."""

from __future__ import annotations

import json

import pytest

from rerank.errors import MissingExtraError
from rerank.extras import need


def test_a_package_that_is_there_is_imported() -> None:
    assert need("json", "any", "a test") is json
    assert need("os.path", "any", "a test").sep == "/"


@pytest.mark.parametrize("package", ["no_such_package", "no_such_package.inside"])
def test_a_package_that_is_not_there_is_refused_with_the_remedy(package: str) -> None:
    with pytest.raises(MissingExtraError, match=rf"a test needs the package '{package}', .*rerank-pipelines\[extra\]"):
        need(package, "extra", "a test")
