"""Print what the packages of this environment weigh, biggest first, with models and installers counted apart."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

APART = {"pip", "setuptools", "wheel"}


def size(distribution: metadata.Distribution) -> int:
    """Bytes on disk of a distribution's files, compiled Python files included."""
    total = 0
    for file in distribution.files or ():
        path = Path(str(distribution.locate_file(file)))
        total += path.stat().st_size if path.is_file() else 0
    return total


def main() -> None:
    """Print the table and the sum."""
    sizes = {distribution.metadata["Name"]: size(distribution) for distribution in metadata.distributions()}
    models = {name for name in sizes if "smollm2" in name or "gemma3" in name}
    counted = {name: value for name, value in sizes.items() if name not in APART | models}
    for name, value in sorted(counted.items(), key=lambda pair: -pair[1]):
        print(f"{value / 1e6:8.1f} MB  {name}")
    weights, whole = sum(sizes[name] for name in models) / 1e6, sum(counted.values()) / 1e6
    print(f"{whole:8.1f} MB  in all, without pip and models ({weights:.0f} MB)")


if __name__ == "__main__":
    main()
