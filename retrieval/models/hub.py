"""Whether the Hugging Face hub answers: asked once, since huggingface_hub tries each file six times over 23 s before it gives up.

And what to say where it refuses an upload.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from retrieval.errors import UserError, one_line


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


REFUSED = {
    401: "the token is not valid: log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: make one with write access to that name, or upload to your own",
    404: "there is no such place: check the name, and that the token may see it",
    413: "it is too large for that account",
    429: "too many requests: try again later",
}


@contextmanager
def explained_upload(repo: str, token: str | bool | None = None) -> Iterator[None]:
    """UserError for a name that cannot be and a missing token, before anything is sent, and for a refusal and a hub out of reach."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a repository, which is user/name ({one_line(error)})") from None
    if not (token if isinstance(token, str) else get_token()):
        raise UserError("uploading needs a token of the Hugging Face hub: log in with `hf auth login`, or set HF_TOKEN")
    if not hub_answers():
        raise UserError(f"the Hugging Face hub, {constants.ENDPOINT}, is out of reach, nothing was uploaded; check the network and HF_ENDPOINT")
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REFUSED.get(status, one_line(error))
        raise UserError(f"the Hugging Face hub refused {repo} (status {status}): {reason}") from None
    except Exception as error:  # of httpx or httpx2, of the uploaders in Rust, and OSErrors of the network
        raise UserError(f"the upload to {repo} broke off ({one_line(error, longest=300)}); run it again: what has arrived is kept") from None
