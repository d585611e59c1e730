import dataclasses

import numpy as np
import pytest
import torch

from ticket_search.config.trajectory import AugmentSpec, DatasetSpec, NormalizeSpec
from ticket_search.data.arrays import read_arrays
from ticket_search.data.dataset import affine, crop_and_flip, load_dataset, statistics
from ticket_search.errors import DataError

DIGITS = DatasetSpec(name="digits", validation=437)
IMAGE = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
#: If these labels change, the keys of stored levels no longer identify the data that the levels were trained on.
FROZEN_LABELS = [8, 2, 6, 7, 8, 5, 2, 6, 6, 5]
FROZEN_BATCH = [1, 3, 0, 4, 6, 9, 3, 1, 7, 6]


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DIGITS, None)


def test_the_splits_are_disjoint_complete_and_in_order(digits):
    arrays = read_arrays(DIGITS, None)
    order = np.random.RandomState(0).permutation(1437)
    assert digits.validation.images.tolist() == arrays.train_images[sorted(order[:437])].tolist()
    assert digits.train.rows.tolist() == sorted(order[437:])
    assert digits.train.images.tolist() == arrays.train_images.tolist()
    assert digits.train.labels.tolist() == arrays.train_labels.tolist()
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1000, 437, 360)
    assert digits.validation.labels.tolist() == arrays.train_labels[sorted(order[:437])].tolist()
    assert digits.test.labels.tolist() == arrays.test_labels.tolist()
    assert (digits.image_shape, digits.classes) == ((1, 8, 8), 10)


def test_the_split_is_frozen_and_follows_split_seed(digits):
    assert digits.validation.labels[:10].tolist() == FROZEN_LABELS
    other = load_dataset(DIGITS.model_copy(update={"split_seed": 1}), None)
    assert other.validation.labels[:10].tolist() != FROZEN_LABELS
    assert other.fingerprint == digits.fingerprint


def test_every_epoch_has_a_new_order_of_the_training_split(digits):
    labelled = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=torch.arange(1437)))
    stream = labelled.stream(seed=3, batch_size=100)
    epochs = [[stream.batch(10 * epoch + i)[1] for i in range(10)] for epoch in range(2)]
    orders = [torch.cat(batches).tolist() for batches in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == digits.train.rows.tolist()
    assert orders[0] != orders[1]


def test_the_last_partial_batch_is_left_out(digits):
    assert [digits.iterations_per_epoch(size) for size in (1, 300, 1000, 1001)] == [1000, 3, 1, 0]
    stream = digits.stream(seed=0, batch_size=300)
    assert [len(stream.batch(i)[1]) for i in range(4)] == [300] * 4
    with pytest.raises(DataError, match="a batch of 1001 images is larger than the training split of 1000 images"):
        digits.stream(seed=0, batch_size=1001)


@pytest.mark.parametrize("augment", [None, AugmentSpec(crop=2, flip=True)])
def test_a_batch_is_a_function_of_seed_and_iteration(augment):
    dataset = load_dataset(DIGITS.model_copy(update={"augment": augment}), None)
    batches = [dataset.stream(seed=0, batch_size=300).batch(i) for i in range(7)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    stream = dataset.stream(seed=0, batch_size=300)
    for i in (6, 0, 3, 2, 4):
        assert all(torch.equal(a, b) for a, b in zip(stream.batch(i), batches[i], strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(dataset.stream(seed=1, batch_size=300).batch(0)[0], batches[0][0])


def test_the_order_is_frozen(digits):
    assert digits.stream(seed=0, batch_size=10).batch(0)[1].tolist() == FROZEN_BATCH


def test_crop_by_hand():
    cropped = {
        (y, x): crop_and_flip(IMAGE, 1, torch.tensor([[y, x]]), torch.tensor([False]))[0, 0].tolist()
        for y, x in [(1, 1), (0, 0), (0, 2), (2, 1)]
    }
    assert cropped == {
        (1, 1): [[1, 2], [3, 4]],
        (0, 0): [[0, 0], [0, 1]],
        (0, 2): [[0, 0], [2, 0]],
        (2, 1): [[3, 4], [0, 0]],
    }


def test_flip_by_hand_after_the_crop_each_image_and_all_channels():
    images = torch.cat([IMAGE, IMAGE + 4], dim=1).repeat(2, 1, 1, 1)
    moved = crop_and_flip(images, 1, torch.tensor([[1, 1], [0, 0]]), torch.tensor([True, True]))
    assert moved.tolist() == [[[[2, 1], [4, 3]], [[6, 5], [8, 7]]], [[[0, 0], [1, 0]], [[0, 0], [5, 0]]]]
    assert crop_and_flip(IMAGE, 0, torch.tensor([[0, 0]]), torch.tensor([True])).tolist() == [[[[2, 1], [4, 3]]]]


def test_augmentation_reaches_every_offset_and_pads_with_black():
    spec = DIGITS.model_copy(
        update={"augment": AugmentSpec(crop=1, flip=True), "normalize": NormalizeSpec(mean=(0.5,), std=(0.5,))}
    )
    dataset = load_dataset(spec, None)
    dataset = dataclasses.replace(
        dataset, train=dataclasses.replace(dataset.train, images=IMAGE.mul(51).repeat(1437, 1, 1, 1))
    )
    images = dataset.stream(seed=0, batch_size=1000).batch(0)[0]
    assert len({str(image.tolist()) for image in images}) == 2 * 9
    assert images.min().item() == -1.0


def test_normalization_by_hand():
    scale, shift = affine(NormalizeSpec(mean=(0.5, 0.0), std=(0.25, 1.0)), is_bytes=True)
    assert (scale.shape, scale.dtype) == ((2, 1, 1), torch.float32)
    assert scale.flatten().tolist() == [np.float32(4 / 255), np.float32(1 / 255)]
    assert shift.flatten().tolist() == [-2.0, 0.0]
    assert affine(NormalizeSpec(mean=(0.5,), std=(0.25,)), is_bytes=False)[0].flatten().tolist() == [4.0]


def test_statistics_by_hand():
    images = np.array([[[[0, 255]], [[51, 51]]]], np.uint8)
    assert statistics(images) == NormalizeSpec(mean=(0.5, 0.2), std=(0.5, 1.0))
    # The mean of many copies of float32 0.1 is not exactly 0.1, but a constant channel must still have a std of 1.
    assert statistics(np.full((1000, 1, 3, 3), 0.1, np.float32)).std == (1.0,)
    assert statistics(np.array([[[[1.0, 5.0]]]], np.float32)) == NormalizeSpec(mean=(3.0,), std=(2.0,))


def test_the_training_split_has_mean_0_and_std_1(digits):
    images = torch.cat([digits.stream(seed=0, batch_size=100).batch(i)[0] for i in range(10)])
    assert abs(images.mean().item()) < 1e-6
    assert abs(images.std(correction=0).item() - 1) < 1e-6


def test_normalize_needs_the_images_channels():
    constants = NormalizeSpec(mean=(0.5,) * 3, std=(1.0,) * 3)
    message = r"mean \[0.5, 0.5, 0.5\] and std \[1.0, 1.0, 1.0\] do not fit the 1 channel of 'digits'"
    with pytest.raises(DataError, match=message):
        load_dataset(DIGITS.model_copy(update={"normalize": constants}), None)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_batches_are_in_order_and_do_not_modify_the_images(digits, split):
    part = getattr(digits, split)
    part = dataclasses.replace(part, images=part.images.float())
    dataset = dataclasses.replace(digits, **{split: part}, augment=AugmentSpec(crop=1, flip=True))
    before = part.images.clone()
    batches = list(dataset.batches(split, batch_size=100))
    assert [len(labels) for _, labels in batches] == [100] * (len(before) // 100) + [len(before) % 100]
    assert torch.cat([labels for _, labels in batches]).tolist() == part.labels.tolist()
    assert torch.equal(torch.cat([images for images, _ in batches]), before * digits.scale + digits.shift)
    assert torch.equal(part.images, before)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 28, 28), 1000), ((3, 32, 32), 1000), ((3, 224, 224), 111), ((3, 4000, 4000), 1)]
)
def test_evaluation_batches_follow_the_size_of_the_images(digits, shape, size):
    assert dataclasses.replace(digits, image_shape=shape).evaluation_batch_size == size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_batches():
    spec = DIGITS.model_copy(update={"augment": AugmentSpec(crop=2, flip=True)})
    cpu, gpu = (load_dataset(spec, None, device).stream(seed=0, batch_size=300) for device in ("cpu", "cuda"))
    for i in (0, 1, 5):
        images, labels = gpu.batch(i)
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(labels.cpu(), cpu.batch(i)[1])
        assert torch.allclose(images.cpu(), cpu.batch(i)[0], rtol=0, atol=1e-6)
