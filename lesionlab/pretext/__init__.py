"""Weights without photographs: a small MobileNet that learns to describe generated pictures.

`python -m lesionlab.pretext --out lesionlab/pretext/bundled/mobilenet_0.25.weights.h5` makes the bundled
weights again.
"""
