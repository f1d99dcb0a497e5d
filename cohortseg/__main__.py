"""``python -m cohortseg``."""

from cohortseg.cli import main

if __name__ == "__main__":
    main()
