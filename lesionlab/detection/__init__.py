"""Windows, heat maps, boxes, FROC."""
