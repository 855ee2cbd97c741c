"""Metrics, intervals and their pictures."""
