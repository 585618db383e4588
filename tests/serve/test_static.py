"""The page's files."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("starlette")


def test_the_files_of_the_page_are_served_by_name_with_a_strict_policy(tmp_path):
    from rerank.serve.static import page_files

    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "page.js").write_text("'use strict'")
    (tmp_path / "notes.txt").write_text("not for others")
    (tmp_path / "folder.js").mkdir()
    files = page_files(tmp_path)
    assert set(files) == {"/", "/page/page.js"}
    assert files["/"].headers["content-type"] == "text/html; charset=utf-8"
    policy = files["/"].headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_without_a_page_there_is_none(tmp_path):
    from rerank.serve.static import page_files

    assert page_files(tmp_path / "missing") == {}
