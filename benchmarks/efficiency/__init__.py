"""Searches driven report by report on simulated slots: on computed problems, and on networks that train on the phantom.

Ours, random search and stock Ray Tune see the same space, budget and rungs; nothing here runs on a cluster.
"""
