"""``python -m crewai_native`` is ``crewai-native``."""

from __future__ import annotations

from crewai_native.cli import main

if __name__ == "__main__":
    main()
