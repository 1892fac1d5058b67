"""Files that are not what their names say: pointers, error pages and other remains of a download that failed."""

from __future__ import annotations

import re
from pathlib import Path

from server.errors import ImportFileError

HEAD = 1_024  # bytes

_HTML = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml[^>]*\?>\s*<!doctype html)", re.IGNORECASE)
_XML_ERROR = re.compile(rb"\s*(<\?xml[^>]*\?>\s*)?<Error>", re.IGNORECASE)


def check_contents(path: Path) -> bytes:
    """Return the beginning of a file. Raises `ImportFileError` if it is something else than a log."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ImportFileError(path, None, error.strerror or str(error)) from error
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ImportFileError(
            path, "line 1", "this is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
        )
    if _HTML.match(head):
        raise ImportFileError(
            path, "line 1", "this is a web page, not a log: the download may have needed a login; download it again"
        )
    if _XML_ERROR.match(head):
        raise ImportFileError(
            path, "line 1", "this is the error message of a file server, not a log; download it again"
        )
    if head.startswith(b"\x1f\x8b"):
        raise ImportFileError(path, None, "it is compressed by gzip; unpack it with `gunzip`, and import the result")
    return head
