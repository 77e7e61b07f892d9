"""The one exception a user's input can raise; commands print its message as one line and exit with status 2."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, where and what to do."""
