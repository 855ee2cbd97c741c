"""Weights without photographs: a small MobileNet that learns to describe generated pictures.

`python -m lesionlab.models.pretext --out lesionlab/models/bundled/mobilenet_0.25.weights.h5` makes the bundled
weights again.
"""
