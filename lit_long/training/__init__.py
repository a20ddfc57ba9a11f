"""Training: the LightningModule, parallelism, what a stage leaves behind while it trains."""
