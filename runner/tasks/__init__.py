"""What the program does: one file a verb. Each takes the checked config and says its result."""
