"""Backends: one folder per framework. The folders mirror each other file by file and never import
each other."""
