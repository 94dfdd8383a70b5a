"""What is measured: fidelity of frames, behaviour over time, and whether the discriminator still works."""
