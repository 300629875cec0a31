"""A plain call: the bridge, the pool and its workers, and the way back. Imports no wing."""
