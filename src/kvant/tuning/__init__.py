"""Quantisation that looks at the model as it runs: layer by layer over a text.

::

    layerwise.py   a method applied to every linear, fed by the layers already quantised
"""
