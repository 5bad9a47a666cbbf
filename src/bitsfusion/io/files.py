"""The door to `atomic`, `hashes`, `texts` and `work_folder`: what most modules need of files."""

from bitsfusion.io.atomic import atomic_folder, atomic_path
from bitsfusion.io.hashes import sha256_file, sha256_folder, sha256_json
from bitsfusion.io.texts import read_json, read_lines, write_json, write_text
from bitsfusion.io.work_folder import folder_lock

__all__ = [
    "atomic_folder",
    "atomic_path",
    "folder_lock",
    "read_json",
    "read_lines",
    "sha256_file",
    "sha256_folder",
    "sha256_json",
    "write_json",
    "write_text",
]
