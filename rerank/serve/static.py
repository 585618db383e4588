"""The page's files: known when the server starts, so that no request's path is ever joined to one."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of every page: nothing from elsewhere, nothing inline."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_files(folder: Path | None = None) -> dict[str, Response]:
    """The responses by path: `index.html` at `/`, the rest under `/page/`."""
    place = folder or Path(__file__).parent / "page"
    found = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.suffix in _TYPES and path.is_file():
            headers = {
                "Content-Type": _TYPES[path.suffix],
                "Content-Security-Policy": POLICY,
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            }
            where = "/" if path.name == "index.html" else f"/page/{path.name}"
            found[where] = Response(path.read_bytes(), headers=headers)
    return found
