"""`make study`: a small AR model made, converted, fine-tuned and measured on two CPU cores, beside its AR control."""
