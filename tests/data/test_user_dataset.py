import sys

import numpy as np
import pytest

from ticket_search.config.trajectory import DatasetSpec
from ticket_search.data.arrays import read_arrays
from ticket_search.errors import DataError

SPEC = DatasetSpec(name="own_dataset:load", validation=1)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes the module ``own_dataset``, whose function ``load`` has the given body."""

    def write(body):
        (tmp_path / "own_dataset.py").write_text(f"import numpy as np\n\ndef load():\n    {body}\n")

    monkeypatch.syspath_prepend(tmp_path)
    # If bytecode were written and a file changed twice within a second, Python would load the earlier version.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own_dataset", None)
    yield write
    sys.modules.pop("own_dataset", None)


def pair(n, images="np.zeros((n, 2, 2))", labels="np.arange(n)"):
    return f"(lambda n: ({images}, {labels}))({n})"


def splits(train, test):
    return f"return {{'train': {train}, 'test': {test}}}"


def test_floats_become_float32_and_grey_images_get_a_channel(own):
    own(splits(pair(3, "np.full((n, 2, 2), 0.5)"), pair(2, "np.full((n, 1, 2, 2), 0.25)")))
    arrays = read_arrays(SPEC, None)
    assert (arrays.train_images.dtype, arrays.train_images.shape) == (np.float32, (3, 1, 2, 2))
    assert (arrays.test_images[0].tolist(), arrays.classes) == ([[[0.25, 0.25], [0.25, 0.25]]], 3)


def test_the_fingerprint_contains_the_source(own):
    own(splits(pair(3), pair(2)))
    before = read_arrays(SPEC, None)
    sys.modules.pop("own_dataset")
    own(splits(pair(3), pair(2)) + "  # edited")
    after = read_arrays(SPEC, None)
    assert before.train_images.tolist() == after.train_images.tolist()
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('disk')", r"'own_dataset:load': the function raised KeyError: 'disk'"),
        ("return 3", "TypeError"),
        ("return {'train': (np.zeros((1, 2, 2)), [0])}", "KeyError: 'test'"),
        (splits(pair(3, "np.zeros((n, 4))"), pair(2)), r"train: images have the shape \[3, 4\]; give \[n, h, w\]"),
        (splits(pair(3), "(np.zeros((0, 2, 2)), [])"), r"test: images have the shape \[0, 2, 2\]"),
        (splits(pair(3, "np.zeros((n, 2, 2), int)"), pair(2)), "train: images are int64; give uint8"),
        (splits(pair(3, "np.full((n, 2, 2), np.nan)"), pair(2)), "train: images contain nan or infinity"),
        (splits(pair(3, "np.full((n, 2, 2), 1e300)"), pair(2)), "train: images contain nan or infinity"),
        (
            splits(pair(3, labels="np.arange(4)"), pair(2)),
            r"train: labels have the shape \[4\]; 3 images need the shape \[3\]",
        ),
        (splits(pair(3, labels="np.arange(n) * 1.0"), pair(2)), "train: labels are float64; give integers"),
        (splits(pair(3), pair(2, labels="np.arange(n) - 1")), "test: a label is -1; number the classes from 0"),
        (
            splits(pair(3, "np.zeros((n, 8, 8, 3))"), pair(2, "np.zeros((n, 8, 8, 3))")),
            r"train: images have the shape \[3, 8, 8, 3\], whose last axis .* channels; give .*transpose\(0, 3, 1, 2\)",
        ),
        (splits(pair(3), pair(2, "np.zeros((n, 9, 2, 1))")), r"test: images have the shape \[2, 9, 2, 1\], whose last"),
        (splits(pair(3, "np.zeros((n, 3, 2))"), pair(2)), r"\[1, 3, 2\]\), but test images are \('float32', \[1, 2"),
    ],
)
def test_invalid_data_are_quoted(own, body, message):
    own(body)
    with pytest.raises(DataError, match=message):
        read_arrays(SPEC, None)


@pytest.mark.parametrize("shape", ["(n, 16, 4, 4)", "(n, 4, 8, 3)", "(n, 8, 3)"])
def test_plausible_axes_are_accepted(own, shape):
    own(splits(pair(3, f"np.zeros({shape})"), pair(2, f"np.zeros({shape})")))
    assert read_arrays(SPEC, None).train_images.ndim == 4


def test_a_multiline_exception_becomes_one_line_with_its_location(own, tmp_path):
    own("raise ValueError('no birds\\n  in the folder\\n')")
    with pytest.raises(DataError) as error:
        read_arrays(SPEC, None)
    place = f"{tmp_path / 'own_dataset.py'}:4"
    assert str(error.value) == f"dataset 'own_dataset:load': the function raised ValueError: no birds ({place})"
