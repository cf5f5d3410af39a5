"""Self-play: what is played, by whom, and where it is kept."""
