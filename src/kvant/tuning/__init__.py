"""What each tensor costs at each packing, measured on the model itself; methods applied through it.

::

    candidates.py   the packings a tensor may get
    rounding.py     how far rounding moves a tensor's outputs, relatively, at each packing
    probe.py        divergence with one tensor, or some, replaced
    priors.py       how sensitive tensors usually are, where nothing is run
    sensitivity.py  all of it together: a table of costs for `kvant.quant.allocate`
    layerwise.py    a method applied to every linear, fed by the layers already quantised

docs/budgets.md says what was measured to choose the costs this way.
"""
