"""From video file to video file: reading, encoding, segments, joining, and what is kept of the input."""
