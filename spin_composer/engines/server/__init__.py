"""Engine ``server``: a completion server generates, with the exported opponent."""
