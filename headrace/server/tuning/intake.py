"""Whether a new job may begin, and what it names: its base model, and files that are its key's and meant for learning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError
from headrace.server.storage.file_store import FileStore, StoredFile
from headrace.server.tuning.job import ENDED, Job

if TYPE_CHECKING:
    from headrace.server.hub import Hub


MOST_UNFINISHED = 100
"""Jobs of a server that have not ended."""

MOST_OF_A_KEY = 20
"""Of them, those of one API key; a server without keys has no such bound."""


def check_number(jobs: Iterable[Job], tenant: str) -> None:
    """Raise ``quota_exceeded`` when the server, or this tenant, has as many unfinished jobs as it may."""
    unfinished = [one for one in jobs if one.status not in ENDED]
    own = sum(one.tenant == tenant for one in unfinished)
    if len(unfinished) >= MOST_UNFINISHED or (tenant and own >= MOST_OF_A_KEY):
        most = f"{MOST_OF_A_KEY} jobs of a key" if own >= MOST_OF_A_KEY else f"{MOST_UNFINISHED} jobs"
        raise HeadraceError("quota_exceeded", f"At most {most} may be unfinished; wait for one to end or cancel it.")


def base_of_job(hub: Hub, name: str) -> str:
    """The name of the model that a job trains for. Raises ``model_not_found``, and ``invalid_value`` for an adapter."""
    base = hub.table.get(name)
    if base is None:
        if any(adapter.name == name for adapter in hub.adapters):
            raise HeadraceError("invalid_value", "'model' is an adapter; give the model that it is for.", param="model")
        base = hub.table.find(name)
    return base.name


def file_to_learn_from(files: FileStore, file_id: str | None, tenant: str, param: str) -> StoredFile | None:
    """A file of this tenant for training. Raises ``file_not_found``, and ``invalid_value`` for one of another purpose."""
    if file_id is None:
        return None
    try:
        file = files.find(file_id, tenant)
    except HeadraceError as error:
        raise HeadraceError(error.code, error.message, param=param) from None
    if file.purpose != "fine-tune":
        message = f"The file was uploaded with the purpose '{file.purpose}', not 'fine-tune'."
        raise HeadraceError("invalid_value", message, param=param)
    return file
