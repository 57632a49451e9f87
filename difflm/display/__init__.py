"""Terminal views of what happens: blocks as they denoise, training runs, copies of weights, tokens by role."""

from difflm.display.copying import copy_observer
from difflm.display.denoising import show_denoising
from difflm.display.progress import training_observer

__all__ = ["copy_observer", "show_denoising", "training_observer"]
