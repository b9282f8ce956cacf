"""DAT: what the loaders deliver, and whether the splits are what they should be."""

from __future__ import annotations

from verify.rules.data_augmentation import (
    augmentation_never_used,
    augmentation_repeats,
    eval_data_random,
    train_augmentation_lost,
    worker_randomness_repeats,
)
from verify.rules.data_inputs import (
    normalisation_off,
    pixels_scrambled,
    splits_normalised_differently,
)
from verify.rules.data_labels import (
    class_map_differs,
    class_missing,
    labels_out_of_range,
    labels_unrelated,
    mask_left_behind,
)
from verify.rules.data_order import (
    order_repeats,
    train_order_fixed,
)
from verify.rules.data_splits import (
    eval_samples_dropped,
    splits_overlap,
)

__all__ = [
    "augmentation_never_used",
    "augmentation_repeats",
    "class_map_differs",
    "class_missing",
    "eval_data_random",
    "eval_samples_dropped",
    "labels_out_of_range",
    "labels_unrelated",
    "mask_left_behind",
    "normalisation_off",
    "order_repeats",
    "pixels_scrambled",
    "splits_normalised_differently",
    "splits_overlap",
    "train_augmentation_lost",
    "train_order_fixed",
    "worker_randomness_repeats",
]
