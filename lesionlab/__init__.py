"""Lesionlab: from raw medical images to a classifier and a detector whose figures can be believed."""
