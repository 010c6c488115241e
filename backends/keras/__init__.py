"""Twinrun on Keras 3 with TensorFlow. Importing this package imports no framework: backend.py
does."""
