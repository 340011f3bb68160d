"""Checkpoints that somebody quantised: their weights as floats again.

``dequantised(values, content, where)`` looks at config.json's ``quantization_config`` (or MLX's
``quantization``) and gives the tensors an unquantised checkpoint would have, each computed when it
is read. One file a scheme; what it cannot decode exactly it refuses.
"""

from kvant.checkpoint.quantised.find import Dequantised, dequantised

__all__ = ["Dequantised", "dequantised"]
