"""Interfaces of other programs, kept as they are, on this package's engine."""
