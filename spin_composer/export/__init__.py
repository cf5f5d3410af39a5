"""The policy as a Hugging Face folder: gathered from its shards, written aside, then renamed."""
