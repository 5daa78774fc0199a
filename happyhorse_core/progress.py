"""How long stages report progress and notice that they should stop, without knowing who is listening."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` after each unit of work. Whoever listens stops the work by raising from it."""


def silent(done: int, total: int) -> None:
    """A listener that shows nothing."""
