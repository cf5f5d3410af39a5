"""What SPIN hangs on Composer's Trainer: checks, stops, intervals, logs."""
