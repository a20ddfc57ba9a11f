"""What trained models are measured by: perplexity, loss by position, retrieval."""
