"""Class names against timm's and torchvision's lists, and the map between two heads."""

import gzip
from importlib.resources import files
from pathlib import Path

import pytest

from swindow import classes
from swindow.errors import UnknownName

TEDDY = 850


def synsets_of_timm(file: str) -> list[str]:
    import timm.data

    return (Path(timm.data.__file__).parent / "_info" / file).read_text(encoding="utf-8").split()


@pytest.mark.parametrize(
    ("mark", "number", "file"),
    [
        ("1", 1000, "imagenet_synsets.txt"),
        ("2", 21841, "imagenet22k_synsets.txt"),
        ("g", 21843, "imagenet21k_goog_synsets.txt"),
    ],
)
def test_synsets_are_timms(mark: str, number: int, file: str) -> None:
    ours = [entry.synset for entry in classes._members(mark)]
    assert len(ours) == number
    assert ours == synsets_of_timm(file)


def test_names_of_the_thousand_are_torchvisions() -> None:
    from torchvision.models import Swin_T_Weights

    assert list(classes.imagenet1k()) == Swin_T_Weights.IMAGENET1K_V1.meta["categories"]


def test_known_names_stand_where_everybody_has_them() -> None:
    names = classes.imagenet1k()
    assert names[:2] == ("tench", "goldfish")
    assert (names[207], names[281], names[999]) == ("golden retriever", "tabby", "toilet tissue")
    assert classes.imagenet22k()[359] == "tench"
    assert classes.imagenet21k()[9205] == "picture"
    assert classes.imagenet21k()[15027] == "bleacher"


@pytest.mark.parametrize("name", sorted(classes.LISTS))
def test_names_are_unique_and_fit_on_a_line(name: str) -> None:
    names = classes.class_names(name)
    assert len(set(names)) == len(names)
    assert all(entry.strip() == entry and entry.isprintable() and entry for entry in names)


def test_googles_list_is_the_22k_and_two_more() -> None:
    both = classes.imagenet21k()
    assert (*both[:9205], *both[9206:15027], *both[15028:]) == classes.imagenet22k()


def test_an_unknown_list_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean imagenet22k"):
        classes.class_names("imagenet-22k")


def test_the_map_leads_to_rows_of_the_same_name() -> None:
    rows, names = classes.map_22k_to_1k(), classes.imagenet22k()
    assert len(rows) == len(set(rows)) == 1000
    assert min(rows) >= 0
    assert max(rows) == 21815
    differ = [number for number, name in enumerate(classes.imagenet1k()) if names[rows[number]] != name]
    assert differ == [TEDDY]
    assert "teddy" in names[rows[TEDDY]]


def test_the_map_against_microsofts_which_counts_googles_rows() -> None:
    """Facts of ``data/map22kto1k.txt``: the first five, pier and toilet tissue."""
    rows = classes.map_22k_to_1k()
    assert rows[:5] == (359, 368, 460, 475, 486)
    google = classes.imagenet21k()
    assert (google[9212], google[21817]) == ("pier", "toilet tissue")
    assert (rows[718], rows[999], rows[TEDDY]) == (9211, 21815, 5564)


def test_the_data_is_small_text() -> None:
    packed = files(classes).joinpath("imagenet.tsv.gz").read_bytes()
    assert len(packed) < 400_000
    lines = gzip.decompress(packed).decode().splitlines()
    assert len(lines) == 21844
    assert all(line.count("\t") == 2 for line in lines)


def test_coco_s_names_are_torchvisions_each_at_its_number() -> None:
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    published = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert list(classes.coco_by_id()) == ["N/A", *published[1:]]
    assert list(classes.coco_from_1()) == published[1:]
    assert list(classes.coco()) == [name for name in published[1:] if name != "N/A"]
    assert len(classes.coco()) == len(set(classes.coco())) == 80
    assert (classes.coco()[0], classes.coco()[79]) == ("person", "toothbrush")
    assert classes.class_names("coco_by_id")[18] == "dog"
