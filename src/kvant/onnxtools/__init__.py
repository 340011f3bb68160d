"""Quantise and optimise any ONNX model: vision, audio, encoders, trees.

::

    packages.py    onnx, onnxruntime, onnxslim: imported when first needed, telemetry off
    model.py       a model file opened, checked against hostile content, weights out of its inputs
    checks.py      structure: cycles, sizes of tensors; external.py: where external data may lie
    save.py        a model written whole or not at all, with external data where it is large
    session.py     a model run by ONNX Runtime
    samples.py     calibration and test data, matched with inputs, read sample by sample
    sources.py     where they come from: .npz, .npy, folders, images
    inner.py       graphs within graphs, and functions of a model's own
    madeup.py      values for a model where there are no data
    prepare.py     simplification and opset before quantisation, each step held against the model
    ranges.py      ranges of activations over the data, in memory that does not grow with it
    thresholds.py  from histograms to ranges: percentile, entropy, mse
    levels.py      the levels and options; integer.py, blocks.py, half.py make them
    rows.py        weights rounded; folded.py: decoded when the model is loaded
    mixed.py       which nodes stay in float so that a bound holds
    compare.py     before against after: accuracy, output error, latency, size
    optimise.py    profiles for CPU, CUDA and NPU-style providers
    exporters.py   PyTorch modules and scikit-learn estimators, by their standard exporters
"""
