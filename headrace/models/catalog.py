"""Where models come from: packages, the models folder, and any file or folder by its path."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.errors import HeadraceError
from headrace.models.config import ModelConfig
from headrace.models.files import FileIdentity, identify, read_limited, refuse
from headrace.models.folder_model import CONFIG_NAME, load_folder
from headrace.models.gguf_file import open_gguf
from headrace.models.gguf_model import load_gguf
from headrace.models.packages import PACKAGED_MODELS, PackagedModel, Progress, cache_dir, install, obtain, part_paths, ready_path
from headrace.models.pooling import POOLING_FILE
from headrace.models.safetensors_file import parse_json
from headrace.models.weights import WeightSource
from headrace.settings.nearest import suggestion

DEFAULT_MODEL = PACKAGED_MODELS[0].name
GGUF_TOKENIZER = "tokenizer.gguf"  # in a folder made from a GGUF file: its metadata, no tensors
MAX_TEMPLATE_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# What a model needs of a folder; nothing else is taken along, above all no code.
_FOLDER_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config)\.json|chat_template\.jinja|tokenizer\.gguf|.+\.safetensors(\.index\.json)?"
)

State = Literal["ready", "to assemble", "not installed"]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model that can be named. ``path`` is its file or folder (``None`` until it is assembled or installed)."""

    name: str
    source: Literal["package", "models folder", "path"]
    state: State
    size_bytes: int
    summary: str
    path: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """A model ready to be run.

    ``tokenizer_source``: the metadata of a GGUF file, or the folder that holds ``tokenizer.json``.
    ``chat_template``: the model's own Jinja source (``None``: a base model).
    ``files``: the files that hold the weights, as they were just before they were opened.
    """

    name: str
    config: ModelConfig
    weights: WeightSource
    tokenizer_source: Mapping[str, object] | Path
    chat_template: str | None
    files: tuple[FileIdentity, ...] = ()


def models_folder() -> Path:
    """Where :func:`pull` registers local models."""
    return cache_dir() / "models"


def list_models() -> list[ModelCard]:
    """Every model that can be found by name: packaged ones (installed or not), then those of the models folder."""
    cards = [_packaged_card(model) for model in PACKAGED_MODELS]
    folder = models_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.name.startswith(".") and _is_model(path):
            cards.append(_path_card(path, "models folder"))
    return cards


def find_model(name_or_path: str) -> ModelCard:
    """The model of that name (case does not count) or at that path; ``model_not_found`` names the nearest known one."""
    cards = {card.name.lower(): card for card in list_models()}
    aliases = {alias: model.name for model in PACKAGED_MODELS for alias in model.aliases}
    wanted = name_or_path.lower()
    card = cards.get(aliases.get(wanted, wanted))
    if card is not None:
        return card
    path = Path(name_or_path).expanduser()
    if name_or_path and _exists(path):
        if not _is_model(path):
            raise refuse(f"{path.name!r} is neither a .gguf file nor a folder with {CONFIG_NAME}")
        return _path_card(path, "path")
    known = ", ".join(card.name for card in cards.values())
    message = f"no model {name_or_path[:128]!r}; known are {known}, or give a .gguf file or a folder"
    raise HeadraceError("model_not_found", message + suggestion(name_or_path, [*cards, *aliases]), param="model")


def open_model(card: ModelCard, progress: Progress | None = None) -> OpenModel:
    """Open a card's model; a packaged one is assembled first if need be.

    Raises ``model_not_found`` when its package is missing, ``model_file`` when it is damaged or unsupported.
    """
    path = card.path or obtain(_packaged(card.name), progress)
    if path.is_dir():
        files = tuple(
            identify(part) for part in sorted(path.iterdir()) if part.name == CONFIG_NAME or part.suffix == ".safetensors"
        )
        config, folder_weights = load_folder(path)
        if (path / GGUF_TOKENIZER).is_file():
            metadata = open_gguf(path / GGUF_TOKENIZER).metadata
            return OpenModel(card.name, config, folder_weights, metadata, _metadata_template(metadata), files)
        return OpenModel(card.name, config, folder_weights, path, _folder_template(path), files)
    files = (identify(path),)
    config, weights, file = load_gguf(path)
    return OpenModel(card.name, config, weights, file.metadata, _metadata_template(file.metadata), files)


def pull(name: str, progress: Progress | None = None) -> ModelCard:
    """Make a model ready under a name: install and check a packaged one, or verify and register a local file or folder."""
    card = find_model(name)
    if card.source == "package":
        install(_packaged(card.name), progress)
        return find_model(card.name)
    open_model(card)
    return card if card.source == "models folder" else _register(card)


def _packaged(name: str) -> PackagedModel:
    return next(model for model in PACKAGED_MODELS if model.name == name)


def _packaged_card(model: PackagedModel) -> ModelCard:
    path = ready_path(model)
    state: State = "ready" if path is not None else "to assemble" if part_paths(model) is not None else "not installed"
    return ModelCard(model.name, "package", state, model.size_bytes, model.summary, path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long or with a null character names no file
        return False


def _is_model(path: Path) -> bool:
    return (path / CONFIG_NAME).is_file() if path.is_dir() else path.suffix.lower() == ".gguf" and path.is_file()


def _path_card(path: Path, source: Literal["models folder", "path"]) -> ModelCard:
    whole = path.resolve()
    if path.is_dir():
        size = sum(part.stat().st_size for part in whole.glob("*.safetensors"))
        return ModelCard(whole.name, source, "ready", size, "safetensors folder", whole)
    return ModelCard(path.stem, source, "ready", whole.stat().st_size, "GGUF file", whole)


def _register(card: ModelCard) -> ModelCard:
    """Put a verified model into the models folder: linked where the file system allows, else copied."""
    if card.path is None or not _NAME.fullmatch(card.name):
        raise refuse(f"{card.name[:64]!r} can't be a model's name: letters, digits, '.', '_' and '-' only, at most 128")
    target = models_folder() / (card.name if card.path.is_dir() else f"{card.name}.gguf")
    if _exists(target) or card.name.lower() in {known.name.lower() for known in list_models()}:
        raise HeadraceError("invalid_value", f"a model {card.name!r} is already registered", param="name")
    try:
        if card.path.is_dir():
            target.mkdir(parents=True)
            for part in card.path.iterdir():
                if part.is_file() and _FOLDER_FILES.fullmatch(part.name):
                    _link(part, target / part.name)
            if (card.path / POOLING_FILE).is_file():
                (target / POOLING_FILE).parent.mkdir()
                _link(card.path / POOLING_FILE, target / POOLING_FILE)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(card.path, target)
    except OSError as error:
        raise refuse(f"{card.name!r} can't be registered: {error.strerror}") from error
    return _path_card(target, "models folder")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _metadata_template(metadata: Mapping[str, object]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise refuse("metadata 'tokenizer.chat_template' is not a string")
    return template


def _folder_template(folder: Path) -> str | None:
    """The chat template of a folder: its own file, or the (default) one of ``tokenizer_config.json``."""
    own = folder / "chat_template.jinja"
    if own.exists():
        try:
            return read_limited(own, MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise refuse(f"{own.name!r} is not UTF-8") from error
    settings = folder / "tokenizer_config.json"
    if not settings.exists():
        return None
    template = parse_json(read_limited(settings, 1 << 24), settings.name).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, Mapping) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise refuse(f"{settings.name!r} has a chat_template that is not a string")
    return template
