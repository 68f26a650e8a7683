"""Triton kernels behind ``impl="triton"``, one module per op; importing the package itself does not load Triton.

Launchers take and return tensors whose shapes, strides and dtypes ``fastvae.ops`` has checked. They know neither
autograd nor the dispatcher.
"""
