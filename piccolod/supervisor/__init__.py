"""The supervisor: the root of the process tree. Standard library only, single-threaded, opens no network connection.

It does no work of its own: it starts, watches, restarts and stops processes, and keeps for them what must outlive them
(listening sockets, a sealed key, their last words).
"""
