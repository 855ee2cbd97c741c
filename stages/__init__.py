"""One script a stage of dvc.yaml: parameters -> one call of the library -> files."""
