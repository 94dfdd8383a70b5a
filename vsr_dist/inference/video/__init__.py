"""From video file to video file: a frame goes through video_in, part (with the network), video_out; join ends a job."""
