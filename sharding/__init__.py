"""Turn videos and folders of images into ordered shards: decode, split into shots, degrade, write tars and an index.

This package is the lowest of the project: it imports no other and no torch. Readers need `schema`, `index`, `codec`
and `video`. `errors` and `console` are shared by all packages.
"""
