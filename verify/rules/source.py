"""SRC: mistakes that the text of the source shows by itself."""

from __future__ import annotations

from verify.rules.source_checkpoint import best_flag_ignored
from verify.rules.source_gradients import gradient_norm_of_last_batch, gradient_test_passes_for_zeros
from verify.rules.source_images import batch_wide_augmentation, bgr_image, statistics_constants
from verify.rules.source_library import (
    dropout_always_on,
    require_grad_typo,
    scheduler_step_epoch,
    softmax_without_dim,
    stale_api,
)
from verify.rules.source_listing import unsorted_listing
from verify.rules.source_loop import (
    comparison_for_assignment,
    loss_rewrapped,
    method_not_called,
    optimizer_rebuilt,
    plus_after_equals,
    text_compared_by_identity,
    training_error_swallowed,
)
from verify.rules.source_results import result_thrown_away

__all__ = [
    "best_flag_ignored",
    "batch_wide_augmentation",
    "bgr_image",
    "comparison_for_assignment",
    "dropout_always_on",
    "gradient_norm_of_last_batch",
    "gradient_test_passes_for_zeros",
    "loss_rewrapped",
    "method_not_called",
    "optimizer_rebuilt",
    "plus_after_equals",
    "require_grad_typo",
    "result_thrown_away",
    "scheduler_step_epoch",
    "softmax_without_dim",
    "stale_api",
    "statistics_constants",
    "text_compared_by_identity",
    "training_error_swallowed",
    "unsorted_listing",
]
