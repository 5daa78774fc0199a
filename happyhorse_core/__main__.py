"""The command ``happyhorse``, which is also ``python -m happyhorse_core``."""

import sys


def main() -> int:
    """Runs the command line; says in one line which library is missing where one is."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as missing:
        library = (missing.name or "").partition(".")[0]
        if library in ("", "happyhorse_core"):
            raise
        way_out = 'pip install ".[cli]" in the project\'s folder, or use the Python of ComfyUI.'
        print(f"error: this Python has no {library}, which the command line needs: {way_out}", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
