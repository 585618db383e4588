"""Parameter-efficient changes to models: methods that train them, and the folders that hold them."""

from __future__ import annotations
