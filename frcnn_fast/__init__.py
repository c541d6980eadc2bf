"""Fast, exact region-proposal ops for two-stage detectors, and a thin Faster R-CNN made of them."""

__version__ = "0.1.0"
