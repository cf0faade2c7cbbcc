"""``python -m engine``."""

if __name__ == "__main__":
    import sys

    from engine.cli import main

    sys.exit(main())
