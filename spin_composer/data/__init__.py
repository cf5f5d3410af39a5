"""SFT data as SPIN plays it: formats, sources, tokenizing, and pair batches."""
