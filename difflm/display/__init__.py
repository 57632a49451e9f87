"""Terminal views of what happens: blocks as they denoise, training runs, tokens by role."""

from difflm.display.denoising import show_denoising
from difflm.display.progress import training_observer

__all__ = ["show_denoising", "training_observer"]
