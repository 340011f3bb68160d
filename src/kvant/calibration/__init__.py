"""What a model's linears are fed: statistics over a text, which quantisers weigh errors by."""

from kvant.calibration.layers import Inputs, LayerWalk

__all__ = ["Inputs", "LayerWalk"]
