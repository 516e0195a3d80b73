"""Every module can be imported where no torch is installed, and importing costs no side effects."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import headrace

# These need the extra `torch`; they are imported only after a clear refusal where it is missing.
NEED_TORCH = {
    "headrace.evaluation.experiments._flexllm_gradients",
    "headrace.evaluation.training_oracle",
    "headrace.kernels.torch_adapters",
    "headrace.kernels.torch_blocks",
    "headrace.kernels.torch_chain",
    "headrace.kernels.torch_pages",
    "headrace.quantization.torch_layers",
}
ABSENT = ("torch", "transformers", "safetensors", "matplotlib", "openai", "httpx", "pytest")
# Dependencies of dependencies that the default set leaves out (tools/requirements.py).
LEFT_OUT = ("huggingface_hub", "hf_xet", "requests", "tqdm", "pygments", "markdown_it")


def modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(headrace.__path__, "headrace.")]
    return [name for name in found if name not in NEED_TORCH and not name.endswith("__main__")]


def test_every_module_imports_without_the_extras() -> None:
    assert len(modules()) > 40
    code = f"""
import importlib, sys, threading
for name in {ABSENT + LEFT_OUT!r}:
    sys.modules[name] = None
for name in {modules()!r}:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
