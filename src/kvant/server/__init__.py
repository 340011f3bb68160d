"""Models over HTTP: the APIs that clients already speak, many users on one engine.

`jobs` is the seam: the protocols on one side of it, the processes that run models on the other.
"""
