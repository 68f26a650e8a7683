"""An importance-weighted auto-encoder."""
