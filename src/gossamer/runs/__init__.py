"""Run folders, atomic checkpoints, signals, progress, logs and sweeps. There is no training loop here."""
