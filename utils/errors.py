"""Exceptions that mean "the input is wrong", as opposed to "the program is wrong"."""


class InputError(ValueError):
    """Bad input from a user: a file, scene, key or frame that cannot be used.

    The message is one line that names the culprit and says what to do. Entry scripts print it without a
    traceback and exit with a non-zero code; every other exception keeps its traceback.
    """


class MisfitError(InputError):
    """Sound weights of another model: names or sizes differ."""


class DamagedError(Exception):
    """A file, or a part of it, that is not what was written; whoever knows its name makes an `InputError` of it."""
