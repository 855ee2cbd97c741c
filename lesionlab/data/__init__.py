"""Cards, download, readers, phantom, crops, splits. Never imports Keras."""
