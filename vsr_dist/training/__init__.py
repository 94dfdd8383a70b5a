"""The GAN step, the loop around it, and what keeps a run safe and observed: checkpoints, EMA, tracking, validation."""
