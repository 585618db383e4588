"""`python -m rerank`: the command line."""

from __future__ import annotations

import sys

from rerank.cli import main

if __name__ == "__main__":
    sys.exit(main())
