"""The one exception that means: what the user gave can't be used, and this sentence says why."""


class InputError(ValueError):
    """Bad input. The message is one sentence that names the file and what was expected."""
