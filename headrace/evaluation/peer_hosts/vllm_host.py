"""Serves a GGUF file's weights with vLLM on the CPU; see the package's docstring for the arguments.

vLLM's CPU kernels do not read GGUF codes, so the weights are dequantised to bf16 into a temporary folder by transformers, which
vLLM brings along, and the package gguf; that folder is served by vLLM's own OpenAI server.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def convert(model: Path, folder: str) -> None:
    """Write weights in bf16, configuration and tokenizer of a GGUF file as a folder that vLLM opens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    plain = GgufConfig(gguf_file=model.name, dequantize=True)
    AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, quantization_config=plain).save_pretrained(folder)


def main() -> None:
    """Convert, then become vLLM's server. The folder goes with the next start of the machine, or by hand."""
    model, (threads, streams, context, port) = Path(sys.argv[1]), map(int, sys.argv[2:6])
    folder = Path(tempfile.gettempdir()) / f"headrace-peer-vllm-{model.stem}-{model.stat().st_size}-{os.getuid()}"
    if not (folder / "config.json").is_file():
        folder.mkdir(mode=0o700, exist_ok=True)
        convert(model, str(folder))
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-num-seqs", str(streams), "--max-model-len", str(context), "--dtype", "bfloat16"]
    command += ["--no-enable-prefix-caching", "--enforce-eager"]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
