"""Synchronous ORM code on the event loop's own thread, in greenlets: no threads, no hops."""
