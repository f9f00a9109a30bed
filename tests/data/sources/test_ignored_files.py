"""What a source holds beside the images that are used is named and counted."""

import pytest

from data.reading.class_counts import similar_names
from data.sources.recognition import open_source
from tests.data.pictures import write_tree
from tests.data.sources.test_class_trees import write
from tests.data.sources.test_sources import zipped


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_hidden_images_are_named_and_those_of_the_system_are_not_images(tmp_path, form):
    """A class `.net` would else be missing without a word, and a Synology's thumbnails be trained on."""
    tree = write(write_tree(tmp_path / "tree", each=2), ".net/1.jpg", "ant/.1.jpg")
    write(tree, "ant/._0.jpg", "@eaDir/0.jpg/THUMB_M.jpg", "ant/@eaDir/THUMB_M.jpg", "__MACOSX/ant/._0.jpg")
    (tree / "ant/.DS_Store").write_bytes(b"x")
    found = open_source(str(zipped(tree, tmp_path / "tree.zip") if form == "zip" else tree), 0)
    assert len(found.listing) == 6 and len(found.listing.classes) == 3
    [note] = found.notes
    assert note.startswith("ignored 2 hidden files or folders, whose names begin with a dot: .net")
    assert "ant/.1.jpg" in note


def test_lists_of_splits_are_said_to_be_unused(tmp_path):
    """As those of Food-101: a random validation split is not the test split that its authors list."""
    tree = write_tree(tmp_path / "food/images", each=2).parent
    for name in ("train.json", "test.txt", "classes.txt"):
        (tree / "meta").mkdir(exist_ok=True)
        (tree / "meta" / name).write_text("{}")
    assert (
        "the splits that these files may list are not used: meta/test.txt, meta/train.json"
        in open_source(str(tree), 0).notes
    )
    write_tree(tmp_path / "split/train", each=2)
    write_tree(tmp_path / "split/test", each=2)
    (tmp_path / "split/train.csv").write_text("image,label\n")
    assert not any("may list" in note for note in open_source(str(tmp_path / "split"), 0).notes)


def test_classes_that_may_be_one_or_several_are_named():
    alike = ["Cat", "cat", "golden retriever", "golden_retriever "]
    assert similar_names([*alike, "C", "C++", "A-", "A", "Mass", "Mass|Edema", "x|y"]) == [
        "classes whose names differ only in case, spaces, hyphens or Unicode form: 'Cat' and 'cat', "
        "'golden retriever' and 'golden_retriever '; --class-map joins them if they are one",
        "classes that combine several labels, each combination one class of its own: 'Mass|Edema'",
    ]
    assert similar_names(["caf\u00e9", "cafe\u0301"])[0].endswith(
        ": 'caf\\xe9' and 'cafe\\u0301'; --class-map joins them if they are one"
    )
    assert similar_names(["tench, Tinca tinca", "maillot", "maillot, tank suit"]) == []
