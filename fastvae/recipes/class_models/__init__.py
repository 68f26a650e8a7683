"""Models of data and classes, and what the systems of such models share."""
