"""How a list of documents looks in a terminal: rank, score, id, and the beginning of each text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rerank.ranking import Hits
    from rerank.reranker import RankedDocs

SNIPPET_LINES = 2
INDENT = " " * 5
DOTS = " ..."


def console() -> Console:
    """Standard output, as wide as the terminal; 80 columns where there is none."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def show_hits(out: Console, hits: Hits | RankedDocs, k: int) -> None:
    """Prints the first `k` documents of one query."""
    from rich.text import Text

    if not len(hits):
        out.print("  no documents")
    for hit in hits[:k]:
        head = Text.assemble(f"{hit.rank:>3}  ", (f"{hit.score:>9.4f}", "dim"), "  ", (hit.docno, "bold"))
        out.print(head, overflow="fold", soft_wrap=True)
        if not hit.text:
            continue
        # Control characters of a document would move the cursor, or worse.
        plain = "".join(c if c.isprintable() else " " for c in hit.text[: 4 * SNIPPET_LINES * out.width])
        # Room for the dots is kept free on every line.
        lines = Text(" ".join(plain.split())).wrap(out, out.width - len(INDENT) - len(DOTS))
        for number, line in enumerate(lines[:SNIPPET_LINES], 1):
            line.rstrip()
            out.print(INDENT + line.plain + (DOTS if number == SNIPPET_LINES < len(lines) else ""))
