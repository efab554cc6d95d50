"""Fuzzing of every file format that the product reads."""
