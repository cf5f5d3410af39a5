"""SFT data as SPIN plays it: formats, sources, tokenising, and pair batches."""
