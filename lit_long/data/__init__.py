"""From sources to batches: corpus → tokenizer → store → packing, retrieval → mixture → LightningDataModule.

Nothing is imported here: `corpus`, `tokenizer`, `store`, `packing` and `retrieval` do without torch, `mixture` and
`held_out` without lightning, and commands that need only the first ones start at once.
"""
