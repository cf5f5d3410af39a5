"""Settings of a run: typed, checked where they enter, free of heavy imports."""
