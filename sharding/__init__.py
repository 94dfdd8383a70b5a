"""Frames to ordered shards: decode videos and frame folders, cut shots, degrade, write tars and one index.

The package stands at the bottom of the project and imports nothing of it: no torch, no training code. Readers
need `schema`, `index`, `codec` and `video`; everything else serves `pack`, `verify`, `inspect` and `samples`.
"""
