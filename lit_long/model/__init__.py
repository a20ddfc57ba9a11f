"""Llama in plain PyTorch. It knows nothing of training, of distribution or of files."""
