"""The library's face: what the command line and the server call, so that nothing is done twice.

::

    catalogue.py       formats: every packing and recipe
    inspection.py      inspect: what a model is, and the size of every recipe
    conversion.py      convert, quantize: a checkpoint becomes a GGUF file; conversion_notes.py
                       says what to know of it
    calibration.py     calibrate: how much each input of a linear matters
    targets.py         write_target: the same for ONNX, MLX, vLLM and Hugging Face folders
    within.py          quantize_within: the best file for a budget (budget.py), or the best folder
                       (target_budget.py, target_search.py); trials.py makes and measures whole
                       variants, fitted.py is what comes of it
    tune.py            tune: the front of a model; tune_report.py writes its files
    measurement.py     evaluate: perplexity and divergence
    benchmark.py       benchmark: speed and memory, beside the limits of the machine
    model.py           load, Model: text, chat, embeddings (sampling_defaults.py)
    verification.py    verify: checksums, structure, reconstruction error
    evidence.py        how an artefact was made and what was measured, beside it
    evidence_check.py  all of that computed again
    advice.py          recommend, doctor: what fits a device; this machine
    demonstration.py   demo: all of it on the built-in model; report.py writes its files
    onnx_models.py     quantize_onnx, optimize_onnx: any ONNX model; from_torch, from_sklearn
    source.py          what a user names becomes a checkpoint
    without_effect.py  options that would change nothing are refused

``import kvant`` offers these functions by name and loads a module when it is first used, so a
command pays only for what it needs.
"""
