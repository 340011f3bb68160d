"""ONNX: a decoder with its cache, or an encoder, as a fold over the graph; a folder that runs.

::

    target.py    what `kvant convert --to onnx` and `kvant quantize --to onnx` call
    levels.py    names of levels, and which tensor gets what
    package.py   the onnx package, imported when something is written
    model.py     nodes, initializers and where each lies in the data file
    weights.py   how weights lie: floats, blocks of integers; written by runs of rows
    emit.py      the fold: what all graphs share
    fused.py     with ONNX Runtime's own operators (the default)
    standard.py  with operators of the standard alone (``--standard-ops``)
    plan.py      graph, layout and jobs of a folder
    sidecar.py   genai_config.json
    verify.py    what was written, compared with the source
    read.py      what a folder's weights stand for: the dequantised reference

What a folder takes and gives (runtimes need nothing else):

- a decoder: ``input_ids`` int64 [batch, sequence]; ``attention_mask`` int64 [batch, past +
  sequence], ones; ``past_key_values.{i}.key`` and ``.value`` [batch, kv heads, past, head size] of
  float32, or
  float16 in a float16 model (past is 0 at first). Gives ``logits`` float32 [batch, sequence,
  vocabulary] and ``present.{i}.key``, ``.value`` [batch, kv heads, past + sequence, head size].
  Positions follow from the mask.
- an encoder: ``input_ids`` and ``attention_mask`` int64 [batch, sequence] (zeros of the mask are
  padding at the end). Gives ``last_hidden_state`` float32 [batch, sequence, hidden] and, of length
  one, ``sentence_embedding`` [batch, hidden].

Files: ``model.onnx`` (the graph), ``model.onnx.data`` (all weights), ``genai_config.json`` (of
decoders), the tokenizer's files.
"""
