#!/usr/bin/env python3
"""Reads a repository as huggingface_hub does, HF_ENDPOINT being the registry, and prints what it got as JSON.

    hub_client.py CACHE_FOLDER REPOSITORY REVISION
"""

import hashlib
import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError


def main() -> None:
    cache, repository, revision = sys.argv[1:]
    folder = Path(snapshot_download(repository, revision=revision, cache_dir=cache))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    listed = {entry.path: entry.size for entry in HfApi().list_repo_tree(repository, revision=revision)}
    refused = {}
    for what, (name, at, file) in {
        "repository": (repository + "x", revision, "config.json"),
        "revision": (repository, "nowhere", "config.json"),
        "entry": (repository, revision, "nothing.json"),
    }.items():
        try:
            hf_hub_download(name, file, revision=at, cache_dir=cache)
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
            refused[what] = type(error).__name__
    print(json.dumps({
        "commit": folder.name, "files": files, "info": {"sha": info.sha, "siblings": [f.rfilename for f in info.siblings]},
        "sizes": listed, "refused": refused,
    }))


if __name__ == "__main__":
    main()
