"""Tokenizers: what a model's consists of, and reading those of Hugging Face folders, SentencePiece and GGUF files."""
