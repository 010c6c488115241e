"""The scripts that Twinrun is compared with, each as its framework's users write it. One run prints
one JSON line."""
