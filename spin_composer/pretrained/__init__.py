"""What a model says before its weights are loaded: its config, its tokenizer, what it can write."""
