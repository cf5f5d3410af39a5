"""Play: which prompts are answered in which units, by whom, and how ranks share the work."""
