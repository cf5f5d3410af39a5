"""What people read of a run: tables, curves, status. Reads files only."""
