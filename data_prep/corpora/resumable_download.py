"""Download large files over bad lines, and unpack 7z archives.

A download grows in `NAME.part` and goes on from there (HTTP Range) after a broken connection or a
new start. It gets its name when its md5 is right. An archive is unpacked beside its target folder,
which is renamed at the end: a file or folder under its final name is complete.
"""

import hashlib
import http.client
import lzma
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Any

import py7zr
import py7zr.callbacks

from retrieval.base.access import follow_umask
from retrieval.base.errors import UserError
from retrieval.base.files import DISK_FULL, FINISHED_PARTS_ARE_KEPT, disk_errors
from retrieval.base.folders import swap_folder
from retrieval.base.progress import bar

CHUNK_BYTES = 1 << 18
TIMEOUT = 60  # s without a byte
MAX_FAILURES = 6  # attempts in a row that brought nothing
BACKOFF = 1.0  # s after the first failure, doubled by each further one
PROTECTED = "it is protected by a password; Clotho's own archives are not"
TEMPORARY_STATUS = (408, 425, 429, 500, 502, 503, 504)


def fetch_file(url: str, path: Path, md5: str | None) -> None:
    """Download `url` to `path`, unless a file with this md5 is there.

    A file with another md5 is kept as NAME.old. Raises UserError.

    Args:
        url: Its server should know ranges, to go on where a download broke off.
        path: File to write.
        md5: None if none is published: then any file at `path` is taken as it is, and a download
            has the length that the server tells.
    """
    if path.exists():
        if md5 is None or file_md5(path) == md5:
            print(f"{path.name}: already there")
            return
        path.replace(path.with_name(f"{path.name}.old"))
        print(
            f"{path.name}: not the expected file (md5); kept as {path.name}.old and fetched again"
        )
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    with disk_errors(path.parent, FINISHED_PARTS_ARE_KEPT):
        _download(url, part)
        found = md5 and file_md5(part)
        if found != md5 and resumed:  # the beginning may come from another file
            part.unlink()
            _download(url, part)
            found = file_md5(part)
        if found != md5:
            part.unlink()
            raise UserError(
                f"{url}: md5 is {found}, expected {md5}; the download is removed: try again, or"
                " check --base-url and --checksums"
            )
        part.replace(path)


def file_md5(path: Path) -> str:
    digest = hashlib.md5()
    progress = bar(total=path.stat().st_size, desc=f"checking {path.name}", unit="B", scale=True)
    with path.open("rb") as file, progress:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


def _download(url: str, part: Path) -> None:
    failures = 0
    while True:
        before = _size(part)
        pause = 0.0
        try:
            if _receive(url, part):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is complete, or of another file: the md5 decides
                return
            if error.code not in TEMPORARY_STATUS:
                raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
            retry_after = error.headers.get("Retry-After", "")
            pause = min(120, int(retry_after)) if retry_after.isdigit() else 0
        except ValueError as error:
            raise UserError(f"{url}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in DISK_FULL:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(part) > before else failures + 1
        if failures >= MAX_FAILURES:
            raise UserError(
                f"{url}: {reason}, {failures} times in a row; run the same command again to go on"
                f" from {_size(part)} bytes"
            )
        time.sleep(max(pause, min(60.0, BACKOFF * 2 ** (failures - 1))))


def _receive(url: str, part: Path) -> bool:
    """Append the rest of the file; return True if it is complete."""
    with part.open("ab") as sink:
        start = sink.tell()
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            sent = response.headers.get("Content-Range", "")
            goes_on = response.status == 206 and sent.startswith(f"bytes {start}-")
            if start and not goes_on:
                start = 0
                sink.truncate(0)
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            name = part.name.removesuffix(".part")
            with bar(total=total, initial=start, desc=name, unit="B", scale=True) as progress:
                while chunk := response.read(CHUNK_BYTES):
                    sink.write(chunk)
                    progress.update(len(chunk))
    return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def extract_wav_folder(archive: Path, folder: Path, max_bytes: float) -> None:
    """Unpack the single folder of .wav files in `archive` (7z), under any name, as `folder`.

    Raises:
        UserError: The archive is damaged or protected, holds links or paths outside its folder, or
        unpacks to more than `max_bytes`.
    """
    temporary = folder.with_name(f"{folder.name}.extracting")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(folder.parent, FINISHED_PARTS_ARE_KEPT):
            _extract(archive, temporary, max_bytes)
            found = {
                path.parent
                for path in temporary.rglob("*")
                if path.suffix.lower() == ".wav" and not path.name.startswith("._")
            }
            if len(found) != 1:
                raise UserError(
                    f"{archive} holds {len(found)} folders with .wav files, expected one"
                )
            follow_umask(only := found.pop())  # archives set their own modes
            swap_folder(only, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, target: Path, max_bytes: float) -> None:
    try:
        with py7zr.SevenZipFile(archive) as file:
            if reason := _why_not(file, target, max_bytes):
                raise UserError(f"{archive} is not unpacked: {reason}")
            total = sum(member.uncompressed for member in file.files)
            with bar(
                total=total, desc=f"unpacking {archive.name}", unit="B", scale=True
            ) as progress:
                file.extractall(target, callback=_Progress(progress))
    except (OSError, UserError):
        raise
    except py7zr.exceptions.PasswordRequired:
        raise UserError(f"{archive} is not unpacked: {PROTECTED}") from None
    except Exception as error:  # py7zr raises many types of errors for a damaged header
        reason = "it is damaged"
        if isinstance(error, (py7zr.exceptions.ArchiveError, lzma.LZMAError)):
            reason = str(error)[:200] or type(error).__name__
        raise UserError(
            f"{archive} cannot be unpacked: {reason}; remove it and run again with --download"
        ) from None


def _why_not(file: py7zr.SevenZipFile, target: Path, max_bytes: float) -> str | None:
    """Return why an archive must not be unpacked, by its table of contents; None if it may."""
    if file.needs_password():
        return PROTECTED
    for member in file.files:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if ".." in parts or parts[:1] == ("/",) or (parts and parts[0].endswith(":")):
            return f"{member.filename[:80]!r} would lie outside its folder"
        if not (member.is_directory or member.is_file) or member.is_symlink or member.is_junction:
            return f"{member.filename[:80]!r} is a link or a device, expected files"
    size = sum(member.uncompressed for member in file.files)
    if size > max_bytes:
        return (
            f"it announces {size / 1e9:,.1f} GB of files, expected at most"
            f" {max_bytes / 1e9:,.1f} GB"
        )
    free = shutil.disk_usage(target.parent).free
    if size > free:
        return (
            f"its {size / 1e9:.1f} GB of files do not fit into the {free / 1e9:.1f} GB that are"
            " free there; make room and run again"
        )
    return None


class _Progress(py7zr.callbacks.ExtractCallback):
    def __init__(self, progress: Any) -> None:
        self.progress = progress

    def report_end(self, processing_file_path: str, wrote_bytes: str) -> None:
        self.progress.update(int(wrote_bytes))

    def report_start_preparation(self) -> None: ...

    def report_start(self, processing_file_path: str, processing_bytes: str) -> None: ...

    def report_update(self, decompressed_bytes: str) -> None: ...

    def report_warning(self, message: str) -> None: ...

    def report_postprocess(self) -> None: ...
