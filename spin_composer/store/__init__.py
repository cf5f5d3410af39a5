"""The self-play store: units of pairs and opponent log-probs, whole or absent."""
