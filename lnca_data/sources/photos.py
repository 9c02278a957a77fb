"""The colour photographs that scikit-image brings along: enough to train and score a small network at once."""

from lnca_data.packing import Photograph


def photographs() -> list[Photograph]:
    """Seven photographs to train on, chelsea to test on."""
    from skimage import data

    training = {
        'astronaut': data.astronaut,
        'coffee': data.coffee,
        'rocket': data.rocket,
        'retina': data.retina,
        'hubble_deep_field': data.hubble_deep_field,
        'motorcycle_left': lambda: data.stereo_motorcycle()[0],
        'motorcycle_right': lambda: data.stereo_motorcycle()[1],
    }
    return [
        *(Photograph(name, load, is_test=False) for name, load in training.items()),
        Photograph('chelsea', data.chelsea, is_test=True),
    ]
