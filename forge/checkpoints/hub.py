"""Find a model: a local folder, or a repository of the Hub.

The only module that knows ``huggingface_hub``, which it imports when a model is really
not local. The client does what it does everywhere: it reads ``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HUB_OFFLINE`` and ``HF_HOME``, and keeps files in its shared cache.

Only files that forge reads are fetched: configuration, tokenizer, the index, and then
exactly the weight files that the index names, because a repository often holds the same
weights several times (pickled, consolidated, converted). For a check, not even those: the
headers are read from the server by range requests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.companions import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CHAT_TEMPLATE_FOLDERS,
    GENERATION_FILE,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
)
from forge.checkpoints.folder import contained_file
from forge.checkpoints.gguf.files import SUFFIX
from forge.checkpoints.header import (
    LENGTH_BYTES,
    Header,
    header_length,
    parse_header,
)
from forge.checkpoints.header_source import HeaderOnlySource
from forge.checkpoints.index import INDEX_FILE, shard_names
from forge.checkpoints.source import SINGLE_FILE, SafetensorsSource
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference

_TEXT_FILES: Final = (
    "config.json",
    GENERATION_FILE,
    INDEX_FILE,
    ADAPTER_CONFIG_FILE,
    *TOKENIZER_FILES,
    *PROCESSOR_FILES,
    *(f"{folder}/*.jinja" for folder in CHAT_TEMPLATE_FOLDERS),
)
_FIRST_READ_BYTES: Final = 256 << 10
"""Holds the whole header of most files, so that most need one request."""
_TIMEOUT_S: Final = 30.0
_PARALLEL_REQUESTS: Final = 8


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model is.

    Attributes:
        root: Local folder, or GGUF file; for a model of the Hub, its folder in the cache.
        revision: Resolved commit of a model of the Hub, else ``None``.
        repository: Its id on the Hub, else ``None``.
        headers_only: Whether its weights are still on the Hub.
    """

    root: Path
    revision: str | None = None
    repository: str | None = None
    headers_only: bool = False


def resolve(reference: ModelReference, *, weights: bool, adapter: bool = False) -> Located:
    """Find a model, and download what is needed of it.

    Args:
        reference: The model; its ``lora`` is not looked at.
        weights: Whether its weights are needed, or its configuration only.
        adapter: Whether the reference names a LoRA adapter rather than a model.

    Returns:
        Where it is. Weights that lie in the cache already are used even if not needed.

    Raises:
        CheckpointError: There is no such folder, repository or revision, access is refused, or
            the Hub cannot be reached.
    """
    folder = Path(reference.path).expanduser()
    is_gguf = folder.suffix == SUFFIX and folder.is_file() and not adapter
    if folder.is_dir() or is_gguf:
        if reference.revision is not None:
            raise CheckpointError(
                f"'{reference.path}' is a local {'file' if is_gguf else 'folder'}, which has no "
                f"revision '{reference.revision}'. Remove the '@{reference.revision}'."
            )
        return Located(folder)
    if _looks_local(reference.path):
        raise CheckpointError(_explain_missing_folder(reference.path, folder))
    return _from_hub(reference, weights=weights, adapter=adapter)


def remote_source(located: Located, *, label: str) -> HeaderOnlySource:
    """Read the headers of a model that is on the Hub.

    Args:
        located: A result of ``resolve`` with ``headers_only``.
        label: What the user typed, for messages.

    Returns:
        A source whose ``read`` raises.

    Raises:
        CheckpointError: The Hub cannot be reached, or a header is corrupt or hostile.
    """
    files = shard_names(located.root) or (SINGLE_FILE,)
    with hub_errors(label), ThreadPoolExecutor(max_workers=_PARALLEL_REQUESTS) as pool:
        headers = list(pool.map(lambda name: _remote_header(located, name), files))
    paths = [located.root / name for name in files]
    return HeaderOnlySource(SafetensorsSource(label, dict(zip(paths, headers, strict=True))))


def _looks_local(text: str) -> bool:
    return (
        text.startswith((".", "/", "~"))
        or text.count("/") > 1
        or text.endswith(("/", SUFFIX))
        or "\\" in text
        or Path(text).is_file()
    )


def _explain_missing_folder(text: str, folder: Path) -> str:
    if folder.is_file():
        return f"'{text}' is a file. Name the model's folder, or a GGUF file."
    if not folder.parent.is_dir():
        return f"There is no folder '{text}', nor '{folder.parent}' (relative to '{Path.cwd()}')."
    names = sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir())
    near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return f"There is no folder '{text}'.{hint}"


def _from_hub(reference: ModelReference, *, weights: bool, adapter: bool) -> Located:
    repository, revision = reference.path, reference.revision
    label = repository if revision is None else f"{repository}@{revision}"
    with hub_errors(label):
        from huggingface_hub import snapshot_download

        root = Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(_TEXT_FILES))
        )
        commit = root.name
        wanted = (ADAPTER_WEIGHTS_FILE,) if adapter else shard_names(root) or (SINGLE_FILE,)
        missing = [name for name in wanted if contained_file(root, name) is None]
        if missing and weights:
            snapshot_download(
                repository, revision=commit, allow_patterns=[escaped(name) for name in missing]
            )
            missing = [name for name in missing if contained_file(root, name) is None]
            if missing:
                raise CheckpointError(
                    f"'{label}' on the Hub has no {missing[0]}: forge reads safetensors only. "
                    "Look for a safetensors revision or conversion of it, or download a GGUF of it "
                    "and name the file."
                )
    return Located(root, commit, repository, headers_only=bool(missing))


def escaped(name: str) -> str:
    """Return a pattern of the Hub's client that matches one file name and no other."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _remote_header(located: Located, name: str) -> Header:
    first, file_bytes = _read_range(located, name, 0, _FIRST_READ_BYTES)
    path = located.root / name
    length = header_length(first, file=path, file_bytes=file_bytes)
    end = LENGTH_BYTES + length
    if len(first) < end:
        rest, _ = _read_range(located, name, len(first), end)
        first += rest
    return parse_header(first[LENGTH_BYTES:end], file=path, file_bytes=file_bytes)


def _read_range(located: Located, name: str, begin: int, end: int) -> tuple[bytes, int]:
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    assert located.repository is not None
    url = hf_hub_url(located.repository, name, revision=located.revision)
    headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}"}
    # Streamed, because a server that ignores the range would send the whole file.
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as response:
        hf_raise_for_status(response)
        total = re.fullmatch(rf"bytes {begin}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code != 206 or total is None:
            raise CheckpointError(
                f"The server of '{located.repository}' does not answer range requests, so "
                f"'{name}' cannot be checked without its weights. Download the model first."
            )
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > end - begin:
                raise CheckpointError(f"The server sent more of '{name}' than was asked for.")
    return bytes(content), int(total[1])


@contextmanager
def hub_errors(label: str) -> Iterator[None]:
    """Turn what the Hub's client raises into errors that say what to do.

    Args:
        label: What the user typed.

    Raises:
        CheckpointError: Instead of the client's own errors.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        message = (
            f"'{label}' is gated. Accept its terms on its page on the Hub, then log in with "
            "'hf auth login' or set HF_TOKEN."
        )
        raise CheckpointError(message) from error
    except errors.RepositoryNotFoundError as error:
        message = (
            f"'{label}' is neither a local folder nor a repository that you can read on the Hub. "
            "Check the spelling; for a private one log in with 'hf auth login' or set HF_TOKEN."
        )
        raise CheckpointError(message) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"'{label}': the repository exists, but has no such revision. "
            "Use a branch, tag or full commit hash of it."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"'{label}' is neither a local folder nor a possible repository id."
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise CheckpointError(_explain_unreachable(label, error)) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(
            f"'{label}' on the Hub has no {SINGLE_FILE} and no {INDEX_FILE}: forge reads "
            "safetensors only. Look for a safetensors revision or conversion of it, or download a "
            "GGUF of it and name the file."
        ) from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(_explain_unreachable(label, error)) from error


def _explain_unreachable(label: str, error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            f"'{label}' is not in the local cache, and HF_HUB_OFFLINE forbids a download. "
            "Unset it, or name a local folder."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"'{label}' is not a local folder, and {constants.ENDPOINT} did not deliver it: {reason} "
        "Check the network, or download the model and name its folder."
    )
