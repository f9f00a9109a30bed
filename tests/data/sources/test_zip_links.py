"""Symbolic links in a zip: their bytes are the path of another file, and no image."""

import stat
import zipfile
from pathlib import Path

import pytest

from data.sources.recognition import open_source
from recipes.errors import UserError
from tests.data.sources.test_archives import IMAGES, contents


def zipped_with_links(path: Path, links: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, target in links.items():
            member = zipfile.ZipInfo(name)
            member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, target)
        for name, data in IMAGES.items():
            archive.writestr(name, data)
    return path


def test_a_link_to_another_member_is_that_image_once_more(tmp_path):
    path = zipped_with_links(tmp_path / "a.zip", {"b/again.jpg": "0.jpg", "b/more.jpg": "../a/./1.jpg", "latest": "a"})
    assert contents(open_source(str(path), 0)) == {
        **IMAGES,
        "b/again.jpg": IMAGES["b/0.jpg"],
        "b/more.jpg": IMAGES["a/1.jpg"],
    }


@pytest.mark.parametrize("target", ["/data/1.jpg", "../../1.jpg", "gone.jpg"])
def test_a_link_out_of_the_archive_is_one_sentence(tmp_path, target):
    path = zipped_with_links(tmp_path / "a.zip", {"b/again.jpg": target})
    with pytest.raises(UserError, match="b/again.jpg in .* is a link to .*1?.jpg, which is not in the archive"):
        open_source(str(path), 0)
