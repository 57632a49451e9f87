"""The demonstration: a real checkpoint, real text and a narrow task, on two CPU cores in half an hour."""
