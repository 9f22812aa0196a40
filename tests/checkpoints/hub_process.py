"""Open a model in a process of its own, because the Hub's client reads its settings at import.

python -m tests.checkpoints.hub_process REFERENCE [headers]
"""

import hashlib
import json
import sys

from forge.checkpoints.checkpoint import open_checkpoint
from forge.core.errors import ForgeError
from forge.recipes.reference import ModelReference


def main() -> None:
    """Print what was found, as one line of JSON."""
    weights = "headers" not in sys.argv[2:]
    try:
        checkpoint = open_checkpoint(ModelReference.parse(sys.argv[1]), weights=weights)
        source = checkpoint.source
        row: dict[str, object] = {
            "root": str(checkpoint.root),
            "revision": checkpoint.revision,
            "lora_revision": checkpoint.lora_revision,
            "model_type": checkpoint.config["model_type"],
            "infos": {
                n: [source.info(n).dtype, list(source.info(n).shape)] for n in source.names()
            },
            "files": [path.name for path in source.files()],
            "kind": type(source).__name__,
        }
        if weights:
            row["digests"] = {
                name: hashlib.sha256(source.read(name)).hexdigest() for name in source.names()
            }
        else:
            try:
                row["digests"] = {n: len(source.read(n)) for n in source.names()}
            except ForgeError as error:
                row["read_error"] = str(error)
    except ForgeError as error:
        row = {"error": str(error)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
