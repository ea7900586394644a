"""Whether the Hugging Face hub answers: asked once, since huggingface_hub tries each file six times over 23 s before it gives up."""

import functools
import os
from pathlib import Path

from huggingface_hub import constants, get_session


def local_files_only(name: str | Path) -> bool:
    """For `from_pretrained`: True for a folder, and for a hub name while the hub is out of reach; what was downloaded before still loads."""
    return os.path.isdir(name) or not hub_answers()


@functools.cache
def hub_answers() -> bool:
    """One request, through the proxy and with the certificates that huggingface_hub uses; no with HF_HUB_OFFLINE=1."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception:  # of httpx or httpx2, as the version of huggingface_hub has it, or OfflineModeIsEnabled
        return False
    return True
