"""The one exception a user's input can raise; commands print its message as one line and exit with status 2.

No ``ValueError``: who catches that of a library does not catch this by mistake.
"""


class InputError(Exception):
    """What the user gave cannot be used; the message says what, where and what to do."""
