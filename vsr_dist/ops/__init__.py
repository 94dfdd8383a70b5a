"""Pure functions on tensors and arrays: colour, resampling, motion, warping. No state, files or networks."""
