"""Using a trained network again: unlearning."""
