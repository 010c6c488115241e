"""The tasks of the program, one file each. A task takes the checked config and prints its
result."""
