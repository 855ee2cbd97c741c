"""The one kind of error that a user can mend."""


class InputError(Exception):
    """Something a user gave is wrong; the message names the file or key, what is wrong and the remedy."""
