"""The error for what an extra of the package, or a package of the system, would bring."""


class MissingExtraError(ImportError):
    """Something that was asked for needs what is not installed; the message says what, and how to get it."""
