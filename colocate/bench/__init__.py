"""Measure any OpenAI-compatible server from outside: send a workload on its schedule, write down what came, and when.

Sees HTTP and records only. `colocate bench` makes one run, `colocate sweep` many, `colocate report` reads both.
"""
