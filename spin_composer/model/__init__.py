"""The policy: ComposerModels, their scoring head, and what is done to their weights."""
