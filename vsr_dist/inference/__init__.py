"""What a trained generator is used with: its files, whole sequences, and encoded video."""
