"""Twinrun on PyTorch Lightning. Importing this package imports no framework: backend.py does."""
