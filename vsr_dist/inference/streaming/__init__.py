"""Any generator as a stream of frames: its state, its tiles, the shots of the video."""
