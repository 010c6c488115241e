"""Implementations, one folder for each framework. They mirror each other file by file and never
import each other."""
