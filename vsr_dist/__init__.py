"""Train, compare and tune video super-resolution GANs on many GPUs."""

__version__ = "0.1.0"
