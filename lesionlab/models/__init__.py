"""Backbones and their blocks, small CNNs, the saved-model format."""
