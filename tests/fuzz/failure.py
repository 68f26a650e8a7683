"""What a case raises."""


class FuzzError(Exception):
    """A case does not do what is promised; the message says what it did, and what was drawn."""
