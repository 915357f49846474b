"""Objects, frames and detections: what is where, in whose pixels, and masks laid from their grids on a picture."""

import pytest
import torch
from jaxtyping import TypeCheckError

import swindow
from swindow.errors import ConfigError, ShapeError
from swindow.objects import Detections, Frames, Objects, Targets, no_objects, pasted, whole_frames


def some(count=3, *, masks=True):
    return Objects(
        boxes=torch.tensor([[0.0, 1.0, 4.0, 5.0], [2.0, 2.0, 3.0, 6.0], [1.0, 0.0, 8.0, 8.0]])[:count],
        labels=torch.tensor([2, 0, 1])[:count],
        masks=(torch.arange(count)[:, None, None] == torch.arange(64).reshape(8, 8) % 4) if masks else None,
        crowd=torch.tensor([False, True, False])[:count],
        areas=torch.tensor([16.0, 4.0, 56.0])[:count],
    )


@pytest.mark.parametrize("masks", [True, False])
def test_some_of_the_objects_keep_all_that_belongs_to_them(masks):
    objects = some(masks=masks)
    for kept in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        part = objects[kept]
        rows = kept if kept.dtype == torch.int64 else kept.nonzero()[:, 0]
        assert len(part) == 2
        for name in ("boxes", "labels", "crowd", "areas") + (("masks",) if masks else ()):
            assert torch.equal(getattr(part, name), getattr(objects, name)[rows])
        assert masks or part.masks is None


def test_parts_that_are_not_as_many_are_refused():
    whole = some()
    with pytest.raises((ShapeError, TypeCheckError), match=r"3 boxes have|labels"):  # whichever looks first
        Objects(boxes=whole.boxes, labels=whole.labels[:2], crowd=whole.crowd, areas=whole.areas)


def test_no_objects_are_none_with_masks_as_large_as_the_picture():
    assert len(no_objects()) == 0
    assert no_objects(masks=(5, 7)).masks.shape == (0, 5, 7)


def test_padding_is_where_the_middle_of_a_cell_lies_in_no_picture():
    frames = Frames((8, 12), ((8, 12), (5, 6), (1, 1)))
    for grid in ((8, 12), (4, 6), (2, 3), (3, 5)):
        padding = frames.padding(grid)
        for image, (height, width) in enumerate(frames.sizes):
            for row in range(grid[0]):
                for column in range(grid[1]):
                    y, x = (row + 0.5) * 8 / grid[0], (column + 0.5) * 12 / grid[1]
                    assert padding[image, row, column] == (y >= height or x >= width)


def test_cleared_images_are_zero_behind_their_pictures():
    images = torch.ones(2, 3, 4, 6)
    cleared = Frames((4, 6), ((4, 6), (2, 5))).cleared(images)
    assert cleared is images
    assert cleared.sum() == 3 * (24 + 10)
    assert whole_frames(images) == Frames((4, 6), ((4, 6), (4, 6)))


def test_targets_move_as_one():
    targets = Targets((some(), no_objects()), Frames((8, 8), ((8, 8), (4, 4)))).to("cpu")
    assert [len(one) for one in targets.objects] == [3, 0]


def detections(**changes):
    values = {
        "boxes": torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 8.0, 4.0]]),
        "scores": torch.tensor([0.9, 0.4]),
        "labels": torch.tensor([1, 0]),
        "size": (8, 8),
        "masks": torch.stack(
            [torch.ones(4, 4), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)]
        ),
    }
    return Detections(**(values | changes))


def test_detections_in_a_picture_of_another_size():
    found = detections().resized((16, 4))
    assert found.size == (16, 4)
    assert found.boxes.tolist() == [[0.5, 4.0, 2.5, 12.0], [0.0, 0.0, 4.0, 8.0]]
    expected = torch.zeros(16, 4, dtype=torch.bool)
    expected[4:12, 1] = True  # the middles of the pixels beside lie on the box's edges, not inside
    assert torch.equal(found.mask(0), expected)
    assert torch.equal(found[torch.tensor([1])].labels, torch.tensor([0]))


def test_a_mask_fills_its_box_and_nothing_else():
    mask = detections().mask(0)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 1:5] = True
    assert torch.equal(mask, expected)
    assert torch.equal(detections().mask(1)[:4], torch.tensor([[1] * 4 + [0] * 4] * 2 + [[0] * 4 + [1] * 4] * 2).bool())


def test_pasting_is_bilinear_at_the_middle_of_pixels():
    ramp = torch.arange(4.0)[None].expand(4, 4) / 4
    values = pasted(ramp, torch.tensor([0.0, 0.0, 8.0, 8.0]), (8, 8))
    across = (torch.arange(8) + 0.5) / 2 - 0.5  # where each pixel's middle lies among the grid's
    inner = across[1:7]
    torch.testing.assert_close(values[4, 1:7], inner / 4)
    assert not pasted(ramp, torch.tensor([9.0, 9.0, 12.0, 12.0]), (8, 8)).any()
    assert not pasted(ramp, torch.tensor([3.0, 3.0, 3.0, 5.0]), (8, 8)).any()


def test_masks_over_the_whole_picture_are_enlarged():
    whole = detections(masks=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]] * 2), whole=True)
    assert whole.mask(0)[0, 0]
    assert not whole.mask(0)[7, 7]
    assert whole.resized((4, 4)).mask(0).shape == (4, 4)
    with pytest.raises(ShapeError, match="masks=True"):
        detections(masks=None).mask(0)


def test_a_detector_answers_with_detections_and_takes_frames_and_a_classifier_does_not():
    model = swindow.build("detr_swin_nano", num_classes=3, num_queries=4, encoder_layers=1, decoder_layers=1).eval()
    images = torch.randn(2, 3, 32, 48)
    found = model(images, Frames((32, 48), ((32, 48), (20, 30))))
    assert [one.size for one in found] == [(32, 48), (20, 30)]
    assert all(isinstance(one, Detections) for one in model(images))
    with pytest.raises(ConfigError, match="frames are for detectors"):
        swindow.build("swin_nano", num_classes=3)(images, Frames((32, 48), ((32, 48),) * 2))
