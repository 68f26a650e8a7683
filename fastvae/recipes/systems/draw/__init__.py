"""DRAW: a recurrent variational auto-encoder that draws an image in glimpses."""
