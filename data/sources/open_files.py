"""Opens a folder or an archive as `Files`. An archive's kind is recognised by its contents, not by its ending."""

from pathlib import Path

from data.sources.archives import COMPRESSED, archive_kind
from data.sources.files import Files, FolderFiles
from data.sources.seven_zip_files import SevenZipFiles
from data.sources.tar_files import TarFiles
from data.sources.zip_files import ZipFiles
from recipes.errors import UserError

TAR_ENDINGS = (
    ".tar",
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst"),
)
ARCHIVE_ENDINGS = (".zip", *TAR_ENDINGS, ".7z", ".rar")


def open_files(path: Path) -> Files:
    """Return the files of a folder, a zip, a .7z archive or a tar, compressed or not.

    Raises:
        UserError: there is no such path, it is none of these kinds, or it is damaged.
    """
    try:
        if path.is_dir():
            return FolderFiles(path)
        if not path.exists():
            raise UserError(
                f"there is no file or folder {path}: give a folder, a zip or a tar of images, or the word `digits`"
            )
        if not path.is_file():  # reading a FIFO would wait for a writer for ever
            raise UserError(f"{path} is neither a file nor a folder: give a folder, a zip or a tar of images")
        kind, name = archive_kind(path), path.name.lower()
        # A file with the ending of an archive but other contents is damaged; opening it raises the error that says so.
        if kind == "zip" or (kind is None and name.endswith(".zip")):
            return ZipFiles(path)
        if kind in ("tar", *COMPRESSED) or (kind is None and name.endswith(TAR_ENDINGS)):
            return TarFiles(path)
        if kind == "7z":
            return SevenZipFiles(path)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
    if kind is not None:
        raise UserError(f"{path} is a {kind} archive, which is not read: unpack it and give the folder")
    raise UserError(f"{path} is not a folder, zip or tar: no other kinds of sources are supported")


def without_ending(name: str) -> str:
    """Return the name of an archive without its ending; other names stay as they are."""
    for ending in sorted(ARCHIVE_ENDINGS, key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
