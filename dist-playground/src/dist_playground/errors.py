"""The one exception that the scripts print as a single line instead of a traceback."""

__all__ = ["UsageError"]


class UsageError(Exception):
    """Something the person at the keyboard can put right: a value, its limit, and the fix."""
