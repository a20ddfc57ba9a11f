"""From documents to batches, in the order that data flows:

    paths, hub → readers → sources     what a path holds; its documents; the parts that are read
    builtin_corpus                     documents that every installation has
    conversations, fields              instruction data; fields and templates of a row
    shards (in a process pool) → prepare → token_store    tokenised, split, written once; then only read
    sampling → packing, synthetic      epochs of documents → sequences; sequences made to be looked back in
    curriculum, mixture → datamodule   phases → one stream of updates → Lightning
    held_out                           sequences for validation and perplexity
    disk_space, inspect                what it will take; what is there

Nothing is imported here: only `mixture`, `held_out` and `datamodule` need torch, only `datamodule` needs lightning, and commands that
need the others start at once. `store` and `module` are paths of 0.1 that work until 0.3.
"""
