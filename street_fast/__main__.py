"""``python -m street_fast`` is the command ``street-fast``."""

from __future__ import annotations

from street_fast.cli import main

if __name__ == "__main__":
    main()
