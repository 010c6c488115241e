"""The scripts that Twinrun is compared with, written as users of each framework write them. Each
run prints one JSON line."""
