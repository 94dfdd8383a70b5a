"""What an evaluation shows: crops, profiles over time, maps of differences, videos."""
