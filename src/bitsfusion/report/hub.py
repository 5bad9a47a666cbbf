"""A packed folder onto the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from bitsfusion.errors import BitsFusionError, InputError, reason


def push_to_hub(folder: Path, repo: str, *, private: bool = False, endpoint: str | None = None) -> str:
    """Uploads all of `folder` to the model repository `repo`, made if it is not there, in one commit; its address.

    The token is the one that huggingface_hub finds (`hf auth login` or HF_TOKEN).

    Args:
        endpoint: of another hub than huggingface_hub's own setting.

    Raises:
        InputError: `repo` is no name of a repository.
        BitsFusionError: the hub refused, or could not be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=endpoint)
    try:
        address = api.create_repo(repo_id=repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            repo_type="model",
            commit_message="Packed by bitsfusion",
        )
    except HFValidationError as error:
        raise InputError(f"{repo}: wanted the name of a repository, OWNER/NAME: {reason(error)}") from None
    except Exception as error:  # which HTTP library's errors these are differs among versions of huggingface_hub
        raise BitsFusionError(f"{repo}: could not be pushed: {reason(error)}") from error
    return str(address)
