"""Engine ``hf``: the policy itself generates, in the training processes."""
