"""A stranger's genai_config.json: what would load a library or leave the folder is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FileFormatError
from kvant.runtimes.onnx_names import read_names
from kvant.runtimes.onnxruntime_genai import GenaiFolder

SESSION = "model.decoder.session_options"
ATTACKS: dict[str, tuple[str, Any]] = {
    "library": (f"{SESSION}.custom_ops_library", "evil.so"),
    "library-elsewhere": (f"{SESSION}.custom_ops_library", "/tmp/evil.so"),
    "library-of-encoder": ("model.encoder.session_options.custom_ops_library", "evil.so"),
    "library-misplaced": ("model.custom_ops_library", "evil.so"),
    "profile": (f"{SESSION}.enable_profiling", "/tmp/profile"),
    "data-elsewhere": (f"{SESSION}.session.model_external_initializers_file_folder_path", "/etc"),
    "provider-library": (f"{SESSION}.provider_options", [{"qnn": {"backend_path": "evil.so"}}]),
    "provider-value": (f"{SESSION}.provider_options", [{"cuda": {"anything": "evil.SO"}}]),
    "provider-folder": (f"{SESSION}.provider_options", [{"x": {"anything": "../evil"}}]),
    "provider-pointer": (f"{SESSION}.provider_options", [{"cuda": {"gpu_external_alloc": "4096"}}]),
    "provider-nested": (
        f"{SESSION}.provider_options",
        [{"OpenVINO": {"load_config": {"a": "/b"}}}],
    ),
    "session-list": (SESSION, [{"custom_ops_library": ""}]),
    "file-parent": ("model.decoder.filename", "../other/model.onnx"),
    "file-absolute": ("model.decoder.filename", "/etc/passwd"),
    "file-windows": ("model.decoder.filename", "C:\\model.onnx"),
    "file-backslash": ("model.decoder.filename", "..\\model.onnx"),
    "file-number": ("model.decoder.filename", 3),
    "file-of-pipeline": ("model.decoder.pipeline", [{"a": {"filename": "/etc/passwd"}}]),
    "vision": ("model.vision.config_filename", "../../secret.json"),
}


def written(folder: Path, path: str, value: Any) -> Path:
    config: dict[str, Any] = {
        "model": {
            "type": "llama",
            "vocab_size": 8,
            "context_length": 16,
            "decoder": {
                "filename": "model.onnx",
                "num_hidden_layers": 1,
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [{"cuda": {"enable_cuda_graph": "0"}}],
                },
            },
        }
    }
    at: Any = config
    head, _, rest = path.partition(f"{SESSION}.")
    keys = [*SESSION.split("."), rest] if not head and rest else path.split(".")
    for key in keys[:-1]:
        at = at.setdefault(key, {})
    at[keys[-1]] = value
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", list(ATTACKS))
def test_refused(name: str, tmp_path: Path) -> None:
    path, value = ATTACKS[name]
    with pytest.raises(FileFormatError, match=r"genai_config\.json: .* remove the entry") as found:
        GenaiFolder.open(written(tmp_path, path, value))
    assert str(found.value).isprintable()


def test_caches_without_a_layer(tmp_path: Path) -> None:
    inputs = {"past_key_names": "k", "past_value_names": "v"}
    outputs = {"present_key_names": "k2", "present_value_names": "v2"}
    folder = written(tmp_path, "model.decoder.inputs", inputs)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["outputs"] = outputs
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="say no layer, such as 'k'"):
        read_names(folder / "model.onnx", ["input_ids", "k", "v"], ["logits", "k2", "v2"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.decoder.filename", "onnx/model.onnx"),
        (f"{SESSION}.intra_op_num_threads", 4),
    ],
)
def test_taken(path: str, value: Any, tmp_path: Path) -> None:
    assert GenaiFolder.open(written(tmp_path, path, value)).vocab_size == 8
