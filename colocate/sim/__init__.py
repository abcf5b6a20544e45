"""The same core under a virtual clock: simulated workers, a device that is not its own latency model, and a router.

`simulate(workload, settings)` is the entry. Nothing here reads a clock or draws an unseeded number.
"""
