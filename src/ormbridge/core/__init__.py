"""A plain call: the bridge, the pool and its workers, and the way back. Imports no wing.

The six steps of a call, in the order to read them:

1. ``bridge``: wrap the function, and make a ``call`` of it;
2. ``route``: find where it goes, below a synchronous frame (``asgiref``) or to the pool;
3. ``pool``, with ``hands``: give it a worker, or let it wait in line;
4. ``connections``, with ``cleaning``: see to the thread's connections;
5. ``worker``: run it, with step 4 before and after;
6. ``mailbox``: hand the outcome to its event loop.

Around them: ``settings``, ``stats``, ``errors``, ``process`` (one pool, exit, fork) and ``hooks``.

A *lease* is what has a worker: a call, or in the wings several that run one after the other. The
*wings* are the packages beside this one: ``leases``, ``asgi``, ``blocks``, ``streaming``,
``postgres`` with its canceller, ``green``, ``testing``. They fill ``hooks`` as they are imported,
and the package's ``__init__`` sets ``hooks.load``, which imports those that every project needs.
"""
