"""Augmentation: image and label move together, light changes the image only, and by a table."""

import numpy as np

from segment.data.augment import augment, light_tables


def numbered(N=40, S=8):
    """Images whose first channel numbers the pixels, so that a move can be read off."""
    numbers = np.arange(S * S, dtype=np.uint8).reshape(S, S)
    return np.repeat(np.stack([numbers] * 3, axis=-1)[None], N, axis=0), numbers


def symmetries(square):
    """The eight, by coordinates: (i, j) goes to one of (±i, ±j), (±j, ±i)."""
    for turned in (square, square.T):
        for rows in (1, -1):
            for cols in (1, -1):
                yield turned[::rows, ::cols]


def test_each_label_is_one_of_the_eight_symmetries_and_all_occur():
    images, numbers = numbered(200)
    labels = np.repeat(numbers[None], 200, axis=0)
    _, moved = augment(images, labels, np.random.default_rng(0))
    kinds = [[(label == kind).all() for kind in symmetries(numbers)] for label in moved]
    assert all(sum(kind) == 1 for kind in kinds)
    assert np.any(kinds, axis=0).all()


def test_image_and_label_move_alike_and_the_light_is_one_table_a_channel(rng):
    images = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    labels = images[..., 0]  # so the moved label says which value each pixel of the image had
    got, moved = augment(images, labels, np.random.default_rng(1))
    for image, label in zip(got, moved, strict=True):
        for value in np.unique(label):
            assert len(np.unique(image[label == value, 0])) == 1
        values = np.unique(label)
        light = np.array([image[label == value, 0][0] for value in values]).astype(int)
        assert (np.diff(light) >= 0).all() and light.max() - light.min() > 100


def test_labels_keep_their_values_and_inputs_stay(rng):
    images = rng.integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), (6, 12, 12))
    before = images.copy(), labels.copy()
    got, moved = augment(images, labels, np.random.default_rng(2))
    assert got.shape == images.shape and got.dtype == moved.dtype == np.uint8
    assert (images == before[0]).all() and (labels == before[1]).all()
    for label, old in zip(moved, labels, strict=True):
        assert (np.sort(label, axis=None) == np.sort(old, axis=None)).all()
    assert not np.shares_memory(got, images) and got.flags.c_contiguous and moved.flags.c_contiguous


def test_the_same_seed_gives_the_same_views_and_images_differ():
    images, numbers = numbered(8)
    labels = np.repeat(numbers[None] % 2, 8, axis=0)
    one, two, other = (augment(images, labels, np.random.default_rng(s))[0] for s in (5, 5, 6))
    assert (one == two).all() and (one != other).any()
    assert len({image.tobytes() for image in one}) == 8
    assert (one[..., 0] != one[..., 1]).any() and (one[..., 1] != one[..., 2]).any()


def test_light_is_mild_and_centred():
    tables = light_tables(4000, np.random.default_rng(0)).astype(int)
    assert tables.shape == (4000, 3, 256)
    assert (np.diff(tables, axis=-1) >= 0).all()
    middle = tables[:, :, 127:129].mean()
    assert abs(middle - 127.5) < 2  # no drift of the mean over many draws
    assert np.std(tables[:, 0, 127]) > 10
    assert np.std(tables[:, 0] - tables[:, 2], axis=0)[200] > 5  # colour: channels differ
    assert abs(tables[:, :, 127] - 127).max() < 60
