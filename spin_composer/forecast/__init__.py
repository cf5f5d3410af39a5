"""What a run will take and write, as far as it is known without a GPU and without weights."""
