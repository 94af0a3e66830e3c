"""Asks servers for a curation: one process asks for all workers, and no request is paid twice.

`journal` names each request in a file before it is sent, and keeps its answer. `broker` is the
process that sends: workers may be killed at any time, and the answers still arrive. `client` is
the side of the workers.
"""
