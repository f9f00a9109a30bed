"""The files of a source that are not used: counted by ending for the user, with an error if a class would be lost."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from data.image_formats import IMAGE_ENDINGS, PICTURE_ENDINGS, advice
from data.printable_text import first_few, printable
from data.sources.files import Files, hidden, hidden_images
from data.sources.open_files import ARCHIVE_ENDINGS
from data.sources.splits import split_of_name
from data.sources.tables import TABLE_ENDINGS
from recipes.errors import UserError

# The last parts of their endings, such as ".gz" of ".tar.gz".
_ARCHIVE_ENDINGS = {f".{ending.rpartition('.')[2]}" for ending in ARCHIVE_ENDINGS}
_LISTED = 5  # names of folders or links in a sentence


def ignored_notes(files: Files) -> list[str]:
    """Return sentences that count the files without an image's ending, and name empty folders and broken links."""
    counts = Counter(_ending(path) for path in files.names if not hidden(path) and not _is_image(path))
    notes = []
    if counts:
        listed = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in counts.most_common(8))
        more = f" and {len(counts) - 8} other endings" if len(counts) > 8 else ""
        notes.append(f"ignored {counts.total():,} files that are not images by their ending: {listed}{more}")
        for ending in counts:
            if ending in _ARCHIVE_ENDINGS:
                notes.append(f"the {ending} files inside are not read: unpack them, or give one of them as the source")
            if ending in PICTURE_ENDINGS:
                notes.append(f"the {ending} files are images, but of a format that is not read: {advice(ending)}")
    if found := hidden_images(files):
        what = "file or folder" if len(found) == 1 else "files or folders"
        notes.append(f"ignored {len(found):,} hidden {what}, whose names begin with a dot: {_some(found)}")
    if count := len(files.empty_folders):
        notes.append(f"{count:,} {'folder is' if count == 1 else 'folders are'} empty: {_some(files.empty_folders)}")
    if count := len(files.broken_links):
        notes.append(
            f"{count:,} {'link leads' if count == 1 else 'links lead'} to no file: {_some(files.broken_links)}"
        )
    return notes


def split_list_notes(files: Files) -> list[str]:
    """Return a sentence about files such as ``meta/test.txt``, which list the images of a split in many data sets."""
    lists = [
        path
        for path in files.names
        if not hidden(path)
        and path.lower().endswith((*TABLE_ENDINGS, ".txt", ".json", ".lst"))
        and split_of_name(PurePosixPath(path).stem) is not None
    ]
    if not lists:
        return []
    return [f"the splits that these files may list are not used: {_some(lists)}"]


def _some(names: Sequence[str]) -> str:
    return first_few(list(map(printable, sorted(names))), _LISTED)


def require_no_lost_class(files: Files, class_folders: Iterable[str]) -> None:
    """Check that no folder beside the class folders holds only images of unread formats or files without an ending.

    Raises:
        UserError: there is such a folder, which would be a class that is missing from the data set.
    """
    known = set(class_folders)
    parents = set()
    endings: dict[str, set[str]] = defaultdict(set)
    for path in files.names:
        if hidden(path):
            continue
        for place in list(PurePosixPath(path).parents)[:-1]:
            if place.name in known:
                parents.add(str(place.parent))
            endings[str(place)].add(_ending(path))
    for folder, found in sorted(endings.items()):
        place = PurePosixPath(folder)
        lost = [ending for ending in sorted(found) if not ending or ending in PICTURE_ENDINGS]
        if str(place.parent) in parents and place.name not in known and lost and not found & set(IMAGE_ENDINGS):
            listed = ", ".join(ending or "files without an ending" for ending in lost)
            raise UserError(
                f"the folder {printable(folder)} of {files.place} would be a class without images, because it holds "
                f"only {listed}: {advice(lost[0]) if lost[0] else 'give them an ending such as .jpg'}, "
                f"or remove the folder"
            )


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_ENDINGS)


def _ending(path: str) -> str:
    return printable(PurePosixPath(path).suffix.lower())
