"""Prefix cache, batches, augmentation, fit."""
