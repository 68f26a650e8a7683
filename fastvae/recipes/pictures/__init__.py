"""Pictures, as PNG files."""
