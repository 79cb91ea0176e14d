"""Measures of a trained model as plain functions on tensors; every figure is a fraction, not a percentage."""
