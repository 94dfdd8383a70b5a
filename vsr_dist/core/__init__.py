"""What every other part stands on: errors, configuration input, seeds, the world of ranks, collectives."""
