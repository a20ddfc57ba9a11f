"""What a stage costs before it runs. No torch."""
