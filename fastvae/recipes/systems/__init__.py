"""The systems, a folder each; ``catalogue.py`` lists them."""
