"""lit-long: train, extend and evaluate long-context Llama models with swappable positional encoders."""

__version__ = "0.2.0"
